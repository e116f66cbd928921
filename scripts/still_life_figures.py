"""Write the figures of the model in the package, as its card has them, into README.md and docs/demo.md.

python scripts/still_life_figures.py             # tables and sentences
python scripts/still_life_figures.py OUT         # also docs/still-lifes.png, from OUT/report.html
"""

import base64
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import ROUND_HALF_UP, Decimal
from pathlib import Path

ROOT = Path(__file__).parents[1]
CARD = ROOT / "calumma" / "assets" / "still-life" / "README.md"
PAGES = (ROOT / "README.md", ROOT / "docs" / "demo.md")
SHEET = ROOT / "docs" / "still-lifes.png"

SENTENCE = r"(?<=two things at their places in )\d+ of \d+(?= held-out prompts)"

ROWS = {
    # README.md
    "| one object | {draws_one_object} | {draws_one_object.baseline} (nearest training image) "
    "| captions: things named | {captions_things} | at most {captions.baseline} |",
    "| two objects | {draws_two_objects} | {draws_two_objects.baseline} "
    "| captions: colors, places | {captions_colors}, {captions_positions} | |",
    "| counting, 1 to 4 | {draws_counting} | {draws_counting.baseline} "
    "| questions of ten kinds | {questions} | {questions.baseline} (most common answer) |",
    "| colors | {draws_colors} | {draws_colors.baseline} | edits exact | {edits_exact} | {edits_exact.baseline} |",
    "| position | {draws_position} | {draws_position.baseline} "
    "| draws when asked, not when not | {draws_when_asked}, {draws_not_when_asked_not} | |",
    "| color of each | {draws_color_of_each} | {draws_color_of_each.baseline} "
    "| wordings that it has not seen | {draws_new_wordings} | |",
    # docs/demo.md
    "| one object | {draws_one_object} | {draws_one_object.interval} "
    "| {draws_one_object.baseline} (nearest training image) |",
    "| two objects | {draws_two_objects} | {draws_two_objects.interval} | {draws_two_objects.baseline} |",
    "| counting, 1 to 4 | {draws_counting} | {draws_counting.interval} | {draws_counting.baseline} |",
    "| colors | {draws_colors} | {draws_colors.interval} | {draws_colors.baseline} (another prompt's image) |",
    "| position | {draws_position} | {draws_position.interval} | {draws_position.baseline} |",
    "| color of each | {draws_color_of_each} | {draws_color_of_each.interval} | {draws_color_of_each.baseline} |",
    "| all skills in wordings new to it (n = {draws_new_wordings.n}) | {draws_new_wordings} "
    "| {draws_new_wordings.interval} | {draws_new_wordings.baseline} in training's wordings |",
    "| captions: things, colors, places | {captions_things}, {captions_colors}, {captions_positions} "
    "| {captions_things.interval} (things) | at most {captions.baseline} (another image's caption) |",
    "| questions of ten kinds (n = {questions.n}) | {questions} | {questions.interval} "
    "| {questions.baseline} (most common answer) |",
    "| questions in wordings new to it (n = {questions_new_wordings.n}) | {questions_new_wordings} "
    "| {questions_new_wordings.interval} | {questions_new_wordings.baseline} in training's wordings |",
    "| edits: exact, what should change, what should not | {edits_exact}, {edits_changed}, {edits_unchanged} "
    "| {edits_exact.interval} (exact) "
    "| {edits_exact.baseline}, {edits_changed.baseline}, {edits_unchanged.baseline} (the image before) |",
    "| stories: images as described, unchanged from image to image | {stories_exact}, {stories_consistent} "
    "| {stories_exact.interval}, {stories_consistent.interval} "
    "| {stories_exact.baseline}, {stories_consistent.baseline} |",
    "| draws when asked, and not when not; refuses unknown things "
    "| {draws_when_asked}, {draws_not_when_asked_not}, {refuses_unknown} | | |",
}
"""Rows of the tables: a field is a metric of the card in percent, or its baseline, interval or n."""


@dataclass(frozen=True)
class Figure:
    """A metric of the card; its text is the value in percent."""

    value: str
    baseline: str
    interval: str
    n: int

    def __str__(self) -> str:
        """Return the value in percent."""
        return percent(self.value)


def percent(share: str) -> str:
    """Return a share as a percentage.

    >>> percent("0.8325"), percent("1"), percent("0"), percent("0.985")
    ('83.3 %', '100 %', '0 %', '98.5 %')
    """
    number = Decimal(share) * 100
    return f"{number:.0f} %" if number in (0, 100) else f"{number.quantize(Decimal('0.1'), ROUND_HALF_UP)} %"


def read_card(text: str) -> dict[str, Figure]:
    """Return the metrics of a card's table by name, and the largest baseline of captions as `captions`."""
    values = dict(re.findall(r'- type: "(\w+)"\n +value: ([\d.]+)$', text, re.M))  # with more digits than the table
    cells = re.findall(r"^\| (\w+) \| [\d.]+ \| ([\d.-]+) \| ([\d.]+) to ([\d.]+) \| (\d+) \| share \|$", text, re.M)
    figures = {
        name: Figure(
            values[name],
            "" if baseline == "-" else percent(baseline),
            " to ".join(percent(end).removesuffix(" %") for end in (low, high)),
            int(n),
        )
        for name, baseline, low, high, n in cells
    }
    captions = [figures[f"captions_{name}"] for name in ("things", "colors", "positions")]
    return {**figures, "captions": max(captions, key=lambda figure: float(figure.baseline.removesuffix(" %")))}


def write_figures(text: str, figures: Mapping[str, Figure]) -> str:
    """Return a page with the figures in its rows and in the sentence that counts positions.

    >>> write_figures("| one object | 1 % | 2 to 3 | 4 % (nearest training image) |",
    ...               {"draws_one_object": Figure("0.5", "25.0 %", "40.0 to 60.0", 200)})
    '| one object | 50.0 % | 40.0 to 60.0 | 25.0 % (nearest training image) |'
    """
    for row in ROWS:
        names = set(re.findall(r"{(\w+)", row))
        if names <= figures.keys():
            pattern = re.sub(r"\\{.*?\\}", r"[\\d., %to]*?", re.escape(row))
            written = re.sub(r" %(?=, [\d.]+ %)", "", row.format_map(figures))
            text = re.sub(f"^{pattern}$", lambda _, written=written: written, text, flags=re.M)
    if "draws_position" in figures:
        position = figures["draws_position"]
        text = re.sub(SENTENCE, f"{round(float(position.value) * position.n)} of {position.n}", text)
    return text


def read_sheet(page: str) -> bytes:
    """Return the PNG file of the sheet of still lifes in a report's page."""
    found = re.search(r'alt="Still lifes" src="data:image/png;base64,([\w+/=]+)"', page)
    if found is None:
        raise SystemExit("no sheet of still lifes in report.html; expected that of `calumma demo --size evening`.")
    return base64.b64decode(found.group(1))


def main() -> None:
    """Write the pages, and the sheet of a report."""
    figures = read_card(CARD.read_text(encoding="utf-8"))
    for page in PAGES:
        page.write_text(write_figures(page.read_text(encoding="utf-8"), figures), encoding="utf-8")
    if len(sys.argv) > 1:
        SHEET.write_bytes(read_sheet(Path(sys.argv[1], "report.html").read_text(encoding="utf-8")))


if __name__ == "__main__":
    main()
