"""Tests of the base class of models of files."""

import os
import signal
import threading
import time

import pytest

from spinezarr.strict_model import StrictModel


class Interrupting:
    """A type of a field that interrupts the process while a schema is built."""

    @classmethod
    def __get_pydantic_core_schema__(cls, _, handler):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.05)  # where the interrupt would take effect
        return handler.generate_schema(int)


class Interrupted(StrictModel):
    """A model that is interrupted once."""

    number: Interrupting


class InterruptedInAThread(StrictModel):
    """A model whose schema another thread builds."""

    number: Interrupting


def test_an_interrupt_waits_until_a_schema_is_built():
    with pytest.raises(KeyboardInterrupt):
        Interrupted(number=1)
    assert Interrupted.__pydantic_complete__
    assert Interrupted(number=2).number == 2
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_thread_that_builds_a_schema_leaves_interrupts_alone():
    numbers = []
    thread = threading.Thread(target=lambda: numbers.append(InterruptedInAThread(number=3).number))

    def build():
        thread.start()
        thread.join()
        time.sleep(1)

    with pytest.raises(KeyboardInterrupt):
        build()
    thread.join()
    assert numbers == [3]
