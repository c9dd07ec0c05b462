"""The page of a run in headless Chromium: filters, search, keys, drawing, and texts that try to break it."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser import Tab, browser, chromium
from helpers.pair_runs import QUICK, loaded, shared_words, small_shards, write_scenes
from helpers.tools import lacking
from PIL import Image
from report_page import photo, row, write_run

from mmbdhs.cli import main
from mmbdhs.pairs import sample_dataset, write_report
from mmbdhs.pairs.shards import Dropped, read_columns, shard_path, shard_paths
from mmbdhs.runs import write_record


def _png(colour: str) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (400, 300), colour).save(file, "PNG")
    return file.getvalue()


HOSTILE = (
    """</script><img src=x onerror="window.hit=1"><!--<script>{{7*7}} {% raw %} ${7} &lt; ' " """
    "\\ \u202eabc\u202c \u2028 \x07 שלום"
)
GARBLED = " ".join(["sits"] * 6)
HALF = "half \ud800 character"  # which a column of Parquet cannot hold
NAME = "run </title><img src=x onerror='window.hit=1'>".replace("/", "\u2215")
PHOTO = {"bytes": photo(0), "path": None}
WHITE = {"bytes": _png("white"), "path": None}
DROPPED = [
    Dropped(50, 100, HOSTILE, "failed", HOSTILE),
    Dropped(51, 101, None, "text_only", "has no image"),
    Dropped(52, 102, "a", "text_only", "has no image"),
    Dropped(53, 103, HALF, "identical", "the same", HOSTILE),
]


def spliced(reference: str, kept: str, completion: str, swapped: bool = False) -> dict[str, Any]:
    ids = {"prefix_ids": [1, 2], "completion_ids": [3]}
    return {"reference": reference, "swapped": swapped, "cut": 1, "kept": kept, "completion": completion, **ids}


def plain(number: int) -> dict[str, Any]:
    """Row `number`, whose filters can be worked out from it."""
    swapped, guided = number % 3 == 0, number % 7 != 0
    chosen, rejected = f"No, it is number {number}.", f"{'Yes' if swapped else 'No'}, it is word {number}."
    return row(
        number,
        **{"chosen": chosen, "rejected": rejected, "images": [PHOTO], "id": f"id-{number}"},
        sentences=[spliced(chosen, rejected[:8], rejected[8:], swapped)] if guided else [],
        **{"similarity": number / 50, "iterations": 1 + number % 5, "guided": guided},
        **{"image_tokens": 12, "image_grids": [[3, 4]], "visible_image_tokens": [1, 11]},
    )


def is_swapped(one: dict[str, Any]) -> bool:
    return any(sentence["swapped"] for sentence in one["sentences"])


ROWS = [
    *map(plain, range(45)),
    row(
        45,
        **{"prompt": HOSTILE, "chosen": HOSTILE, "rejected": f"New {HOSTILE}", "key": HOSTILE, "id": HOSTILE},
        images=[PHOTO, {"bytes": None, "path": f"/gone/{HOSTILE}"}, PHOTO],
        **{"image_tokens": 20, "image_grids": [[2, 4], [1, 4], [2, 4]], "visible_image_tokens": [0, 7, 9, 12, 18]},
    ),
    row(46, images=[PHOTO], image_tokens=2928, visible_image_tokens=list(range(29)), rejected="No grid."),
    row(
        47,
        **{"chosen": f"A red dog {GARBLED}.", "rejected": f"A red cat {GARBLED}.", "guided": False, "noise_steps": 500},
        **{"noise_range": "clip", "images": [PHOTO], "image_tokens": 12, "image_grids": [[3, 4]]},
        **{"iterations": 5, "similarity": 1.0, "pair_faults": ["garbled"]},
    ),
    row(48, images=[WHITE], image_tokens=4, image_grids=[[2, 2]], visible_image_tokens=[1]),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / NAME
    write_run(folder, ROWS, DROPPED)
    return folder


@pytest.fixture(scope="module")
def window(folder: Path) -> Iterator[Tab]:
    with browser(chromium() or lacking("chromium", "Chromium")) as tab:
        write_report(folder)
        yield tab


@pytest.fixture
def tab(window: Tab, folder: Path) -> Iterator[Tab]:
    window.resize(1200, 800)
    window.open(folder / "report.html")
    yield window
    assert window.errors() == []
    assert window.run("window.hit") is None


def choose(tab: Tab, **values: str) -> None:
    """Set filters, as if a person did."""
    for name, value in values.items():
        event = "new Event('input', {bubbles: true})"
        tab.run(f"byId('{name}').value = {json.dumps(value)}; byId('{name}').dispatchEvent({event})")


def shown(tab: Tab) -> list[int]:
    """The rows of the cards on all pages."""
    turn = """(() => {
        const next = document.querySelector(".next"), more = !next.disabled;
        next.click();
        return more;
    })()"""
    titles = texts(tab, ".card h3")
    while tab.run(turn):
        more = texts(tab, ".card h3")
        assert more and more[0] not in titles, "the page does not turn"
        titles += more
    return [int(title.removeprefix("Row ")) for title in titles]


def texts(tab: Tab, selector: str) -> list[str]:
    return tab.run(f"[...document.querySelectorAll({json.dumps(selector)})].map((one) => one.textContent)")


FILTERS = {
    "none": ({}, lambda one: True),
    "iteration": ({"iteration": "3"}, lambda one: one["iterations"] == 3),
    "guided": ({"guided": "true"}, lambda one: one["guided"]),
    "unguided": ({"guided": "false"}, lambda one: not one["guided"]),
    "swapped": ({"swapped": "true"}, is_swapped),
    "two at once": ({"swapped": "false", "iteration": "1"}, lambda one: not is_swapped(one) and one["iterations"] == 1),
    "similarity": ({"least": "0.4", "largest": "0.5"}, lambda one: 0.4 <= one["similarity"] <= 0.5),
    "rejected": ({"search": "WORD 1"}, lambda one: "word 1" in json.dumps(one["rejected"])),
    "id": ({"search": "id-7"}, lambda one: one["id"] == "id-7"),
    "search and filter": ({"search": "onerror=", "iteration": "1"}, lambda one: one["row"] == 45),
    "nothing": ({"search": "nothing has this"}, lambda one: False),
}


@pytest.mark.parametrize(("values", "fits"), FILTERS.values(), ids=FILTERS)
def test_filters_show_the_rows_that_fit(tab: Tab, values: dict[str, str], fits: Any) -> None:
    choose(tab, **values)
    expected = [one["row"] for one in ROWS if fits(one)]
    assert shown(tab) == expected
    count = f"{len(expected)} of {len(ROWS)} pairs" if len(expected) < len(ROWS) else f"{len(ROWS)} pairs"
    assert texts(tab, "#count") == [count]
    assert (texts(tab, ".nothing") == []) == bool(expected)


def test_failures_are_shown_by_kind(tab: Tab) -> None:
    assert texts(tab, "#show option") == ["Pairs (49)", "failed (1)", "identical (1)", "text only (2)"]
    choose(tab, show="text_only")
    assert shown(tab) == [101, 102] and texts(tab, "#count") == ["2 examples without a pair"]
    assert texts(tab, ".field p") == ["has no image"] * 2
    choose(tab, show="failed")
    assert shown(tab) == [100] and texts(tab, ".field p") == [HOSTILE] and texts(tab, ".card bdi") == [HOSTILE]
    choose(tab, show="identical", search="ONERROR")
    assert shown(tab) == [103] and texts(tab, ".field p") == ["the same", HOSTILE]
    assert texts(tab, ".card bdi") == [HALF]
    tab.run("document.querySelector('[type=reset]').click(); new Promise((done) => setTimeout(done))")
    assert texts(tab, "#count") == ["49 pairs"]


def test_the_order_follows_similarity(tab: Tab) -> None:
    choose(tab, iteration="2", order="-1")
    assert shown(tab) == [41, 36, 31, 26, 21, 16, 11, 6, 1]


def test_keys_go_through_pairs_and_pages(tab: Tab) -> None:
    focused = "document.activeElement.closest('.card')?.querySelector('h3').textContent"
    tab.press("j", "j")
    assert tab.run(focused) == "Row 1"
    tab.press("ArrowRight", "k", "ArrowLeft")
    assert tab.run(focused) == "Row 0"
    tab.press("n")
    assert texts(tab, ".page") == ["2 of 3"] * 2 and texts(tab, ".card h3")[0] == "Row 20"
    tab.press("p", "p")
    assert texts(tab, ".page")[0] == "1 of 3"
    tab.press(*["j"] * 21)
    assert tab.run(focused) == "Row 20"
    tab.press("/", *"number 44")
    assert tab.run("document.activeElement.value") == "number 44" and texts(tab, ".card h3") == ["Row 44"]
    tab.press("Escape", "?")
    assert tab.run("byId('keys').open") and tab.run("document.activeElement.id") != "search"
    tab.press("j", "Escape")
    assert not tab.run("byId('keys').open")


def test_every_text_is_shown_as_it_is(tab: Tab) -> None:
    choose(tab, search="row 45")
    assert texts(tab, ".card bdi") == [HOSTILE, HOSTILE]
    assert texts(tab, ".field p") == [HOSTILE, HOSTILE, f"New {HOSTILE}"]
    assert texts(tab, ".path") == [f"/gone/{HOSTILE}"]
    assert texts(tab, ".rejected mark") == ["New "]
    assert texts(tab, "h1") == [NAME]
    assert tab.run("document.images.length") == 2
    assert tab.run("[...document.body.children].map((one) => one.localName).join(' ')") == (
        "a header main dialog script script script script"
    )


def test_the_page_runs_no_script_but_its_own(tab: Tab) -> None:
    """Even where a text came through as HTML."""
    broken = """new Promise((done) => {
        document.body.insertAdjacentHTML("beforeend", "<img id=broken src=x onerror='window.hit=1'>");
        byId("broken").addEventListener("error", () => done("not loaded"));
    })"""
    assert tab.run(broken) == "not loaded"


def test_changed_words_are_marked(tab: Tab) -> None:
    choose(tab, search="row 3")
    assert texts(tab, ".card:first-child mark") == ["Yes", "word"]
    choose(tab, search="row 47")
    assert texts(tab, ".card mark") == ["cat"]


def drawn(tab: Tab, row_number: int) -> list[list[str]]:
    """The paths of the visible tokens of each image of a row, one list for each image."""
    choose(tab, search=f"row {row_number}")
    script = """[...document.querySelectorAll(".frame, .placeholder")].map((frame) =>
        [...frame.querySelectorAll(".visible")].map((path) => path.getAttribute("d")))"""
    return tab.run(script)


def test_visible_tokens_are_outlined_in_their_image(tab: Tab) -> None:
    assert drawn(tab, 44) == [["M1 0h1v1h-1zM3 2h1v1h-1z"]]
    assert drawn(tab, 45) == [["M0 0h1v1h-1zM3 1h1v1h-1z"], [], ["M0 0h1v1h-1zM2 1h1v1h-1z"]]
    assert texts(tab, ".images .note") == ["5 of 20 image tokens visible"]


def test_hidden_tokens_are_dimmed(tab: Tab, tmp_path: Path) -> None:
    drawn(tab, 48)
    tab.run("document.querySelector('.card').scrollIntoView(); document.querySelector('.frame img').decode()")
    box = tab.run("document.querySelector('.frame').getBoundingClientRect().toJSON()")
    tab.screenshot(tmp_path / "screen.png")
    screen = np.asarray(Image.open(tmp_path / "screen.png").convert("L")).astype(int)
    rows, columns = (
        [int(box[low] + box[size] * at) for at in (0.25, 0.75)] for low, size in (("y", "height"), ("x", "width"))
    )
    (first, visible), (third, fourth) = screen[np.ix_(rows, columns)]
    assert visible > 250 and max(first, third, fourth) < 130


def test_images_without_a_grid_and_noisy_ones_have_no_outlines(tab: Tab) -> None:
    assert drawn(tab, 46) == [[]]
    assert texts(tab, ".images .note") == ["29 of 2,928 image tokens visible"]
    assert drawn(tab, 47) == [[]]
    assert texts(tab, ".images .note") == ["noise N = 500, clip"]
    assert texts(tab, ".chip") == ["similarity 1.000", "iteration 5", "unguided", "garbled"]


def test_the_overview_counts_every_row(tab: Tab) -> None:
    tiles = dict(zip(texts(tab, ".tiles dt"), texts(tab, ".tiles dt + dd"), strict=True))
    assert tiles == {
        **{"Pairs": "49", "Without a pair": "4", "Swapped yes or no": str(sum(map(is_swapped, ROWS)))},
        **{"Unguided": "8", "Identical pairs": "1", "Garbled pairs": "1"},
    }
    assert "failed 1, identical 1, text only 2" in texts(tab, ".tiles .note")
    assert texts(tab, ".settings span") == ["ρth 0.99", "εs 0.97", "NBDHS 5", "temperature 1.0", "seed 0"]
    assert all(title.count(".") > 1 for title in texts(tab, ".chart svg > title"))


def test_light_dark_and_the_button_between(tab: Tab) -> None:
    page = "getComputedStyle(document.body).backgroundColor"
    light = tab.run(page)
    tab.run("byId('theme').click()")
    dark = tab.run(page)
    assert light != dark and texts(tab, "#theme") == ["Light"]
    tab.resize(1200, 800, dark=True)
    tab.run("byId('theme').click()")
    assert tab.run(page) == light


def test_a_phone_has_one_column_and_room_for_fingers(tab: Tab, folder: Path) -> None:
    tab.resize(390, 844, phone=True)
    tab.open(folder / "report.html")
    assert tab.run("document.documentElement.scrollWidth") == 390
    lefts = "[...document.querySelector('.card').children].map((part) => part.getBoundingClientRect().left)"
    assert len(set(tab.run(lefts))) == 1
    touched = "button:not(dialog *), select, input:not([type=checkbox]), label:has([type=checkbox])"
    heights = f"[...document.querySelectorAll('{touched}')].map((one) => one.offsetHeight)"
    assert min(tab.run(heights)) >= 44


def test_a_run_is_shown_as_it_was_sampled(tmp_path: Path, window: Tab) -> None:
    scenes = write_scenes(tmp_path / "scenes", 5)
    sample_dataset(*loaded(), scenes, tmp_path / "run", QUICK, shared_words, small_shards(2), progress=False)
    rows = [one for shard in shard_paths(tmp_path / "run") for one in read_columns(shard, ["row", "rejected"])]
    window.open(write_report(tmp_path / "run"))
    assert shown(window) == [one["row"] for one in rows] and window.errors() == []
    assert texts(window, ".rejected p") == [one["rejected"][0]["content"][0]["text"] for one in rows]
    assert window.run("document.querySelectorAll('.frame .visible').length") == len(rows)


def test_more_pairs_than_wanted_are_counted_but_not_shown(folder: Path, tmp_path: Path, window: Tab) -> None:
    page = write_report(folder, tmp_path / "short.html", most=2)
    window.open(page)
    assert shown(window) == [0, 1] and texts(window, ".tiles dd")[0] == "49"
    assert texts(window, ".notice")[:2] == [
        "This page has the first 2 of 49 pairs. The overview is about all of them.",
        "This page has the first 2 of 4 examples without a pair.",
    ]


def test_settings_that_were_tried_are_a_table(tmp_path: Path, window: Tab) -> None:
    write_run(tmp_path, [])
    best = {"mask_threshold": 0.9, "similarity_threshold": 0.97, "similarity": "<b>"}
    rows = [
        setting | {"iteration": number, "accepted": share}
        for setting, shares in ((best, (0.5, 0.73456)), (best | {"mask_threshold": 1.0}, (0.25, 1.0)))
        for number, share in enumerate(shares, 1)
    ]
    (tmp_path / "tune.json").write_text(
        json.dumps({"rows": rows, "recommendation": "Take <0.9>.", "recommended": best})
    )
    window.open(write_report(tmp_path))
    assert texts(window, "th") == ["ρth", "εs", "similarity", "1", "2"]
    assert texts(window, "td") == ["0.9", "0.97", "<b>", "50%", "73%", "1.0", "0.97", "<b>", "25%", "100%"]
    assert texts(window, ".best td")[:1] == ["0.9"]
    assert texts(window, "#tune + p") == ["Take <0.9>."] and texts(window, "#count") == ["0 pairs"]


def test_a_broken_file_of_settings_is_named(tmp_path: Path) -> None:
    write_run(tmp_path, [])
    (tmp_path / "tune.json").write_text("{")
    with pytest.raises(ValueError, match=r"tune\.json: needs what mmbdhs tune writes"):
        write_report(tmp_path)


def test_the_command_writes_the_page(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    write_run(tmp_path, ROWS[:3])
    assert main(["report", str(tmp_path), "--output", str(tmp_path / "a/page.html"), "--most", "2"]) == 0
    assert capsys.readouterr().out == f"{tmp_path}/a/page.html\n"
    assert "first 2 of 3 pairs" in (tmp_path / "a/page.html").read_text(encoding="utf-8")


def broken(folder: Path) -> None:
    write_run(folder, ROWS[:3])
    shard = shard_path(folder, 0)
    shard.write_bytes(shard.read_bytes()[:-9])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: None, "folder: needs the folder of a sampling run, got '{}' without the run.json of one"),
        (lambda folder: folder.rmdir(), "folder: needs the folder of a sampling run, got '{}' without the run.json"),
        (
            lambda folder: write_record(folder, {"config": {"learning_rate": 1e-6}}),
            "folder: needs the folder of a sampling run, got '{}' without the run.json of one",
        ),
        (broken, "{}/data/train-00000.parquet: needs a shard of pairs, got another file"),
        (lambda folder: (folder / "run.json").write_text("{"), "{}/run.json: needs a JSON object"),
    ],
    ids=["nothing in it", "not there", "a training run", "broken shard", "broken record"],
)
def test_a_folder_that_cannot_be_shown_is_named(
    make: Any, message: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    make(tmp_path)
    assert main(["report", str(tmp_path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"mmbdhs report: {message.format(tmp_path)}")
