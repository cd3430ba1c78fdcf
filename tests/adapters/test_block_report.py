"""The report's section on the blocks, from records made by hand."""

import json
import math

import pytest
from matplotlib.image import imread

from vgrout_pl.report.blocks import BlockRecords, blocks_markdown, plot_blocks

NOTHING = dict.fromkeys(("seeded_share", "cosine", "input_overlap", "output_overlap"))


def record(step, module, deployed, quarantine, **values):
    total = deployed + quarantine
    return {
        "step": step,
        "module": module,
        "deployed_delta": deployed,
        "quarantine_delta": quarantine,
        "delta_share": quarantine / total if total else None,
        "deployed_gradient": 1.0,
        "quarantine_gradient": 3.0,
        "gradient_share": 0.75,
        **NOTHING,
        **values,
    }


def write(path, records):
    path.write_text("".join(json.dumps(r) + "\n" for r in records))
    return path


RECORDS = [
    record(0, "model.layers.0.q_proj", 0.0, 0.0),
    record(0, "model.layers.1.q_proj", 0.0, 0.0),
    record(5, "model.layers.0.q_proj", 3.0, 1.0, seeded_share=0.5, input_overlap=0.2),
    record(5, "model.layers.1.q_proj", 4.0, 0.0, seeded_share=0.0, input_overlap=0.4),
    record(5, "model.layers.1.up_proj", 0.0, 12.0, seeded_share=1.0),
]


def test_the_table_pools_the_last_measurement_by_kind_of_projection(tmp_path):
    table = blocks_markdown(BlockRecords.load(write(tmp_path / "blocks.jsonl", RECORDS)))
    header, _, whole, query, up = table.splitlines()
    assert header.startswith("| before step 6 | modules |")
    # q_proj: |D| = (9 + 16)^(1/2) = 5, |Q| = 1; energies 10 and 16, so 0.5 * 10 / 26 reads the seeded channel
    assert query == "| q_proj | 2 | 5 | 1 | 0.167 | 0.75 | 0.192 | 0.3 | - |"
    assert up == "| up_proj | 1 | 0 | 12 | 1 | 0.75 | 1 | - | - |"
    # |Q| = (1 + 144)^(1/2) = 12.04; (0.5 * 10 + 144) / 170
    assert whole == "| all | 3 | 5 | 12 | 0.707 | 0.75 | 0.876 | 0.3 | - |"


def test_series_leave_out_the_steps_where_nothing_is_defined(tmp_path):
    records = BlockRecords.load(write(tmp_path / "blocks.jsonl", RECORDS))
    assert records.series("delta_share") == ([5], [pytest.approx(math.sqrt(145) / (5 + math.sqrt(145)))])
    assert records.series("gradient_share") == ([0, 5], [pytest.approx(0.75)] * 2)


def test_the_plot_is_drawn_once_a_block_has_moved(tmp_path):
    path = write(tmp_path / "blocks.jsonl", RECORDS)
    assert plot_blocks(BlockRecords.load(path), tmp_path / "blocks.png", title="a run")
    assert imread(tmp_path / "blocks.png").shape[:2] == (570, 1500)
    fresh = BlockRecords.load(write(tmp_path / "fresh.jsonl", RECORDS[:2]))
    assert not plot_blocks(fresh, tmp_path / "fresh.png") and not (tmp_path / "fresh.png").exists()


def test_a_torn_last_line_is_left_out_and_a_broken_one_is_named(tmp_path):
    path = write(tmp_path / "blocks.jsonl", RECORDS)
    path.write_text(path.read_text() + '{"step": 10, "mod')
    assert list(BlockRecords.load(path).steps) == [0, 5]
    path.write_text('{"step": 1}\n')
    with pytest.raises(ValueError, match=r"blocks.jsonl, line 1: expected one module's measurements") as error:
        BlockRecords.load(path)
    assert "\n" not in str(error.value)
