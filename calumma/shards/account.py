"""What a folder of shards holds, told in lines."""

from __future__ import annotations

from calumma.shards.manifest import Manifest, SourceCounts
from calumma.text_format import pluralize

NAMELESS = "(no source)"


def shard_lines(manifest: Manifest) -> list[str]:
    """The counts of the whole, of what was left out, and of each source in a table."""
    total = manifest.total
    left_out = ", ".join(f"{reason} {count:,}" for reason, count in manifest.dropped.items())
    return [
        f"{pluralize(total.num_sequences, 'sequence')}, {pluralize(total.num_tokens, 'id')} in "
        f"{pluralize(len(manifest.shards), 'piece')}; {pluralize(total.num_images, 'image')} of "
        f"{pluralize(manifest.codes_per_image, 'code')}",
        f"{pluralize(sum(manifest.dropped.values()), 'document')} left out"
        + (f": {left_out}" if left_out else ""),
        *source_table({name: manifest.counts(name) for name in manifest.sources}),
    ]


def source_table(sources: dict[str, SourceCounts]) -> list[str]:
    """A line for each source, under one that names the columns.

    >>> for line in source_table({"pairs": SourceCounts(num_sequences=2, num_ids=20, num_codes=8)}):
    ...     print(line)
    source  sequences        ids       text      codes    control     images    longest
    pairs           2         20          0          8         12          0          0
    """
    width = max([len("source"), *(len(name or NAMELESS) for name in sources)])
    columns = ("sequences", "ids", "text", "codes", "control", "images", "longest")
    lines = [f"{'source':{width}}" + "".join(f"{column:>11}" for column in columns)]
    for name, counts in sources.items():
        control = counts.num_tokens - counts.num_text_tokens - counts.num_image_tokens
        numbers = (
            *(
                counts.num_sequences,
                counts.num_tokens,
                counts.num_text_tokens,
                counts.num_image_tokens,
            ),
            *(control, counts.num_images, counts.max_length),
        )
        cells = "".join(f"{number:>11,}" for number in numbers)
        lines.append(f"{name or NAMELESS:{width}}{cells}")
    return lines
