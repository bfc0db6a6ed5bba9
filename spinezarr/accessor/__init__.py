"""What can a scan that xarray has opened do: ``dataset.spine``?"""
