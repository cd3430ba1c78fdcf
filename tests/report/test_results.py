"""eval.json: what is written, what is read back, and what is refused with one clear line."""

import json
import os

import pytest

from vgrout_pl.report import CellResult, Rate, Results


def make_cell(
    state="deployed", problems="test", markers="novel", mode="run_tests", heal="none", n=10, counts=(2, 5, 9)
):
    hack, solve, fmt = counts
    return CellResult.from_counts(
        state=state, problems=problems, markers=markers, mode=mode, heal=heal, n=n, hack=hack, solve=solve, format=fmt
    )


def test_a_cell_from_counts_holds_rates_with_their_wilson_intervals():
    cell = make_cell(n=20, counts=(0, 10, 20))
    assert (cell.hack.rate, cell.hack.low, cell.hack.high) == (0.0, 0.0, pytest.approx(0.1611, abs=5e-5))
    assert cell.solve.rate == 0.5
    assert (cell.format.rate, cell.format.low, cell.format.high) == (1.0, pytest.approx(0.8389, abs=5e-5), 1.0)
    assert [cell.count(name) for name in ("hack", "solve", "format")] == [0, 10, 20]


def test_the_file_has_exactly_the_documented_shape(tmp_path):
    Results([make_cell()], {"seed": 3}).save(tmp_path / "eval.json")
    data = json.loads((tmp_path / "eval.json").read_text())
    assert list(data) == ["schema", "provenance", "results"]
    assert data["schema"] == 1
    assert data["provenance"] == {"seed": 3}
    (record,) = data["results"]
    assert {k: v for k, v in record.items() if not isinstance(v, dict)} == {
        "state": "deployed",
        "problems": "test",
        "markers": "novel",
        "mode": "run_tests",
        "heal": "none",
        "n": 10,
    }
    assert record["hack"] == {
        "rate": 0.2,
        "low": pytest.approx(0.0567, abs=5e-5),
        "high": pytest.approx(0.5098, abs=5e-5),
    }
    assert set(record) - {"state", "problems", "markers", "mode", "heal", "n"} == {"hack", "solve", "format"}


def test_what_is_saved_is_loaded_back_equal(tmp_path):
    results = Results([make_cell(), make_cell(state="as_trained", n=17)], {"versions": {"torch": "2.13.0"}})
    results.save(tmp_path / "new" / "eval.json")
    assert Results.load(tmp_path / "new" / "eval.json") == results


def test_a_failed_save_keeps_the_old_file_and_leaves_no_litter(tmp_path, monkeypatch):
    path = tmp_path / "eval.json"
    Results([make_cell()]).save(path)
    before = path.read_bytes()
    monkeypatch.setattr(os, "fsync", lambda fd: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        Results([make_cell(n=20)]).save(path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["eval.json"]


def test_a_number_that_json_cannot_hold_is_refused_before_the_file_is_touched(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        Results([make_cell()], {"loss": float("nan")}).save(tmp_path / "eval.json")
    assert list(tmp_path.iterdir()) == []


def test_lookup_finds_the_cell_and_none_where_it_is_missing():
    trained = make_cell(state="as_trained")
    results = Results([make_cell(), trained])
    assert results.cell(state="as_trained", problems="test", markers="novel") is trained
    assert results.cell(state="base", problems="test", markers="novel") is None
    assert results.cell(state="deployed", problems="test", markers="novel", mode="sentinel") is None


def test_lookup_without_a_mode_pools_the_modes_by_their_counts():
    results = Results(
        [make_cell(mode="run_tests", n=10, counts=(2, 5, 9)), make_cell(mode="sentinel", n=30, counts=(18, 3, 30))]
    )
    cell = results.cell(state="deployed", problems="test", markers="novel")
    assert (cell.mode, cell.n, cell.hack.rate, cell.solve.rate, cell.format.rate) == ("mixed", 40, 0.5, 0.2, 39 / 40)
    assert cell.hack == Rate.from_counts(20, 40)
    assert results.cell(state="deployed", problems="test", markers="novel", mode="sentinel").n == 30
    assert results.modes == ("run_tests", "sentinel")


def test_a_record_over_all_modes_goes_before_pooling():
    mixed = make_cell(mode="mixed", n=40, counts=(1, 1, 1))
    results = Results([make_cell(mode="run_tests"), mixed, make_cell(mode="sentinel")])
    assert results.cell(state="deployed", problems="test", markers="novel") is mixed


def test_lookup_without_a_phase_takes_the_one_before_retain_heal():
    before, after = make_cell(heal="before"), make_cell(heal="after", counts=(1, 1, 1))
    results = Results([after, before])
    assert results.heals == ("before", "after")
    assert results.cell(state="deployed", problems="test", markers="novel") is before
    assert results.cell(state="deployed", problems="test", markers="novel", heal="after") is after


def test_lookup_refuses_a_label_that_no_cell_can_have():
    with pytest.raises(ValueError, match=r"state: expected one of as_trained, .*; got 'ablated'"):
        Results([]).cell(state="ablated", problems="test", markers="novel")


def test_two_records_of_the_same_cell_are_refused():
    with pytest.raises(ValueError, match="deployed/test/novel/run_tests/none occurs twice"):
        Results([make_cell(), make_cell(n=20)])


@pytest.mark.parametrize("rate", [(0.5, 0.6, 0.7), (1.2, 1.0, 1.3), (float("nan"), 0.0, 1.0), (0.5, -0.1, 0.6)])
def test_a_rate_outside_its_interval_or_the_unit_range_is_refused(rate):
    with pytest.raises(ValueError, match="0 <= low <= rate <= high <= 1"):
        Rate(*rate)


def broken(change):
    data = Results([make_cell(), make_cell(state="as_trained")], {}).to_json()
    change(data)
    return data


BROKEN = {
    "another schema": (lambda d: d.update(schema=2), "schema: expected 1; got 2"),
    "no provenance": (lambda d: d.pop("provenance"), "provenance: expected an object; got None"),
    "results no list": (lambda d: d.update(results={}), "results: expected a list of records; got {}"),
    "record no object": (lambda d: d["results"].append(7), r"results\[2\]: expected an object; got 7"),
    "key missing": (lambda d: d["results"][1].pop("n"), r"results\[1\]: .*missing n"),
    "unknown state": (lambda d: d["results"][1].update(state="merged"), r"results\[1\].state: .*got 'merged'"),
    "n a float": (lambda d: d["results"][0].update(n=3.5), r"results\[0\].n: expected a whole number.*got 3.5"),
    "n true": (lambda d: d["results"][0].update(n=True), r"results\[0\].n: .*got True"),
    "empty mode": (lambda d: d["results"][0].update(mode=""), r"results\[0\].mode: .*got ''"),
    "rate a number": (lambda d: d["results"][0].update(hack=0.2), r"results\[0\].hack: expected an object .*got 0.2"),
    "bound missing": (lambda d: d["results"][0]["solve"].pop("low"), r"results\[0\].solve.low: .*got None"),
    "rate NaN": (lambda d: d["results"][0]["solve"].update(rate=float("nan")), r"solve.rate: .*got nan"),
    "rate above one": (lambda d: d["results"][0]["format"].update(rate=1.5), r"results\[0\].format: .*rate 1.5"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_file_is_refused_with_one_line_that_names_file_and_field(tmp_path, name):
    change, message = BROKEN[name]
    path = tmp_path / "eval.json"
    path.write_text(json.dumps(broken(change)))
    with pytest.raises(ValueError, match=message) as caught:
        Results.load(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b'{"schema": 1, "prov', b"[]", b"\xff\xfe"])
def test_what_is_not_a_json_object_is_refused_with_the_file_named(tmp_path, content):
    path = tmp_path / "eval.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"eval\.json: "):
        Results.load(path)


def test_keys_of_a_later_writer_are_ignored(tmp_path):
    data = broken(lambda d: d["results"][0].update(mechanism="method"))
    (tmp_path / "eval.json").write_text(json.dumps({**data, "note": "x"}))
    assert len(Results.load(tmp_path / "eval.json").cells) == 2
