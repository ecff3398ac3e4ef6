"""What the benches make of answers: rows, truths, and the demo's words."""

import io
import tarfile
from pathlib import Path
from typing import Any

import pytest

from bench import demo, pair, transport
from common.errors import OffboardError
from profiles.train import signs


def answer(label: str | None, **changes: Any) -> pair.Row:
    row = {
        "label": label,
        "bytes_up": 100,
        "bytes_down": 10,
        "rounds": 1,
        "latency_ms": 5.0,
        "device_ms": 1.0,
        "server_ms": 2.0,
        "deadline_met": True,
        "error": None,
    }
    return row | changes


def test_a_row_counts_what_was_answered() -> None:
    answers = [
        answer("a", latency_ms=1.0),
        answer("b", rounds=2, bytes_up=300, latency_ms=9.0),
        answer(None, error="unavailable", deadline_met=False, latency_ms=5.0),
        answer("a", latency_ms=6.0),
    ]
    row = pair.summary(answers, ["a", "a", "a", None], strategy="amot", config="x", seconds=2.0)
    assert set(pair.COLUMNS) <= set(row)
    assert row["n"] == 4
    assert row["accuracy"] == pytest.approx(1 / 3)
    assert row["rounds"] == pytest.approx(1.25)
    assert row["bytes_up"] == pytest.approx(150)
    assert row["violations"] == 1
    assert row["unanswered"] == 1
    assert (row["p50_ms"], row["p95_ms"]) == (6.0, 9.0)
    assert row["throughput"] == 2.0


def test_frames_without_a_truth_give_no_accuracy() -> None:
    assert pair.summary([answer("a")], [None])["accuracy"] is None


def test_an_answer_too_few_is_an_error() -> None:
    with pytest.raises(OffboardError, match="2 frames got 1"):
        pair.summary([answer("a")], ["a", "b"])


def test_truth_is_in_the_folder_or_the_name(tmp_path: Path) -> None:
    assert pair.truth(Path("val/n03394916/x.JPEG")) == "French horn"
    path = signs.write(tmp_path, [5])[0]
    assert pair.truth(path) == signs.CLASSES[signs.render(5)[1]]
    assert pair.truth(Path("holiday/7-of-9.jpg")) is None
    assert pair.truth(Path("holiday/beach.jpg")) is None


def test_a_tar_file_is_unpacked_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OFFBOARD_CACHE", str(tmp_path / "cache"))
    source = tmp_path / "set.tar"
    with tarfile.open(source, "w") as archive:
        entry = tarfile.TarInfo("set/val/n03394916/x.JPEG")
        archive.addfile(entry, io.BytesIO(b""))
    found = pair.extracted(source, "val")
    assert pair.pictures(found) == [found / "n03394916/x.JPEG"]
    (found / "mark").touch()
    assert (pair.extracted(source, "val") / "mark").exists()
    assert pair.extracted(found, "val") == found


def rows(amot: float, jpeg: float, amot_bytes: int, jpeg_bytes: int) -> list[pair.Row]:
    raw = {"strategy": "raw", "config": "raw, full frame", "bytes_up": 100_000, "agreement": 1.0}
    return [
        raw,
        raw
        | {
            "strategy": "jpeg",
            "config": "jpeg q30",
            "agreement": jpeg,
            "bytes_up": jpeg_bytes,
        },
        raw
        | {
            "strategy": "amot",
            "config": "amot, two rounds",
            "agreement": amot,
            "bytes_up": amot_bytes,
            "rounds": 1.4,
        },
    ]


@pytest.mark.parametrize(
    ("made", "says"),
    [
        (rows(0.9, 0.95, 2000, 4000), "2.0x fewer"),
        (rows(0.9, 0.95, 6000, 4000), "1.5x more"),
        (rows(0.9, 0.80, 6000, 4000), "No coded frame"),
    ],
)
def test_the_demo_says_who_won(made: list[pair.Row], says: str) -> None:
    text = demo.explanation(made)
    assert says in text
    assert "60% needed only one round" in text


def test_the_demo_refuses_what_it_cannot_show(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert demo.main(["--source", str(tmp_path)]) == 2
    assert "no pictures" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        demo.main(["--profile", "imagenette"])
    assert "--source" in capsys.readouterr().err


def test_a_server_that_cannot_start_says_why() -> None:
    with pytest.raises(OffboardError, match="no profile 'sings'"), pair.server("sings"):
        pass


def test_the_transport_page_keeps_the_notes_of_the_last_one(tmp_path: Path) -> None:
    page = tmp_path / "transport.md"
    transport.publish(page, "# Table\n")
    assert page.read_text() == "# Table\n"
    page.write_text("# Table\n\nold rows\n\n## Notes\n\n- as it is\n")
    for _ in range(2):
        transport.publish(page, "# Table\n\nnew rows\n")
        assert page.read_text() == "# Table\n\nnew rows\n\n## Notes\n\n- as it is\n"
