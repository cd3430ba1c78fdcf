"""Who has lost the process that started it knows so, however late it asks."""

from vgrout_pl import processes


def test_a_process_whose_parent_was_gone_before_it_asked_has_lost_it(monkeypatch):
    assert not processes.first_process_fails_too(seconds=0.0)
    assert processes._parent_lost() is None
    monkeypatch.setattr(processes.os, "getppid", lambda: -1)  # the machine's reaper has taken it over
    assert processes.first_process_fails_too(seconds=0.0)
    assert processes._parent_lost() == "process 0 of this run has ended"
