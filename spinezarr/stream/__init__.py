"""How do random patches get from a store into a training loop?

:mod:`~spinezarr.stream.draw` chooses them, :mod:`~spinezarr.stream.read` reads them into batches,
and :mod:`~spinezarr.stream.epoch` gives the batches in order.
"""
