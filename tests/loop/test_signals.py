"""SIGINT and SIGTERM: noted while a window goes on, obeyed at once where nothing would be lost."""

import os
import signal
from types import SimpleNamespace

import pytest

from vgrout_pl.signals import DeferredStop, Stopped, stop_at_once


@pytest.mark.parametrize(
    ("sent", "code"),
    [
        ((signal.SIGINT,), 0),
        ((signal.SIGINT, signal.SIGINT), 130),
        ((signal.SIGTERM, signal.SIGTERM), 0),
        ((signal.SIGTERM, signal.SIGINT), 130),
    ],
)
def test_a_signal_is_noted_and_ctrl_c_after_it_ends_the_process_at_once(sent, code):
    trainer = SimpleNamespace(strategy=SimpleNamespace())
    child = os.fork()
    if child == 0:
        DeferredStop().install(trainer)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        for number in sent:
            os.kill(os.getpid(), number)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == code


def test_without_training_a_signal_stops_at_once_and_the_handlers_come_back():
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with pytest.raises(Stopped) as caught, stop_at_once():
        os.kill(os.getpid(), signal.SIGTERM)
    assert caught.value.code == 143
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_a_job_managers_signal_is_answered_after_the_step(monkeypatch):
    from lightning.fabric.plugins.environments import SLURMEnvironment

    answers = []
    monkeypatch.setattr(SLURMEnvironment, "_validate_srun_used", staticmethod(lambda: None))
    monkeypatch.setattr(SLURMEnvironment, "_validate_srun_variables", staticmethod(lambda: None))
    environment = SLURMEnvironment(auto_requeue=True, requeue_signal=signal.SIGUSR1)
    strategy = SimpleNamespace(cluster_environment=environment, reduce_boolean_decision=lambda decision, all: decision)
    trainer = SimpleNamespace(strategy=strategy)
    before = signal.signal(signal.SIGUSR1, lambda number, frame: answers.append(number))
    try:
        stop = DeferredStop()
        stop.install(trainer)
        assert not stop.asked(trainer)
        os.kill(os.getpid(), signal.SIGUSR1)
        assert stop.asked(trainer)
        assert answers == []
        with pytest.raises(Stopped):
            stop.obey()
        assert answers == [signal.SIGUSR1]
    finally:
        signal.signal(signal.SIGUSR1, before)
