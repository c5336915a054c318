"""What the figures come to: ratios with their spread, tables, and what is kept in the project."""

import json
import statistics

# What the others are measured by, in the order of the columns.
YARDSTICKS = ["bare", "edgeward_ten", "haproxy_plain", "haproxy", "envoy", "envoy_uncached"]


def ratios(peers, figure="cpu_us"):
    """Of each peer the CPU per request, or another figure, over that of the yardsticks, round by round: median, least and most."""
    found = {}
    for name, peer in peers.items():
        for yardstick in YARDSTICKS:
            if yardstick == name or yardstick not in peers:
                continue
            pairs = list(zip(peer["runs"], peers[yardstick]["runs"], strict=True))
            each = [mine[figure] / theirs[figure] for mine, theirs in pairs if theirs[figure]]
            if each:
                found.setdefault(name, {})[yardstick] = {"median": statistics.median(each), "least": min(each), "most": max(each)}
    return found


HEADINGS = [
    "",
    "us/request",
    "user",
    "system",
    "req/core-s",
    "p50 ms",
    "p99 ms",
    "RSS MiB",
    "switches",
    "busy %",
]


def headings(result):
    return HEADINGS + [f"/ {yardstick}" for yardstick in yardsticks(result)]


def yardsticks(result):
    return [yardstick for yardstick in YARDSTICKS if yardstick in result["peers"]]


def rows(result, busy):
    """A line for each peer, the cheapest first."""
    peers = sorted(result["peers"].items(), key=lambda item: item[1]["median"]["cpu_us"])
    for name, peer in peers:
        median = peer["median"]
        idle = "" if median["least_busy"] >= busy or "pace" in result else " *"
        yield [
            name,
            f"{median['cpu_us']:.1f}",
            f"{median['user_us']:.1f}",
            f"{median['system_us']:.1f}",
            number(median["per_core_second"], 0),
            number(median["p50_us"], 2, 1000),
            number(median["p99_us"], 2, 1000),
            f"{median['rss_kib'] / 1024:.0f}",
            number(median["switches"], 2),
            f"{median['least_busy']:.0f}{idle}",
            *(spread(result["ratios"].get(name, {}).get(yardstick)) for yardstick in yardsticks(result)),
        ]


def number(value, digits, divisor=1):
    return "-" if value is None else f"{value / divisor:,.{digits}f}"


def spread(ratio):
    return "" if ratio is None else f"{ratio['median']:.2f} ({ratio['least']:.2f}-{ratio['most']:.2f})"


def notes(result):
    """What does not stand in a column."""
    for name, peer in sorted(result["peers"].items()):
        median = peer["median"]
        # A graceful reload may end connections that are idle: what wrk takes for a failure is none.
        reloads = result["name"] == "reload"
        if (median["errors"] and not reloads) or (median["refused"] and not result["name"].startswith("refused")):
            yield f"{name}: {median['errors']} failed connections, {median['refused']} answers with another status"
    if result["name"] == "connections_1000":
        for name, peer in sorted(result["peers"].items()):
            median = peer["median"]
            each = (median["pss_kib"] - median["idle_pss_kib"]) / 1000
            yield f"{name}: {median['idle_pss_kib'] / 1024:.0f} MiB idle, {each:.1f} KiB more for each connection (Pss)"
    if "pace" in result:
        yield f"each was sent {result['pace']:,} requests per second"
        for name, of in sorted(ratios(result["peers"], "p99_us").items()):
            yield f"p99 of {name}: " + ", ".join(f"{spread(ratio)} of {yardstick}" for yardstick, ratio in of.items())
    for name, reason in result["left_out"].items():
        yield f"{name} left out: {reason}"


def table(result, busy):
    """For the terminal."""
    lines = [headings(result), *rows(result, busy)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    text = [f"{result['name']}: {result['title']}"]
    for line in lines:
        cells = [line[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True))]
        text.append("  " + "  ".join(cells).rstrip())
    text += [f"  {note}" for note in notes(result)]
    if any(line[9].endswith("*") for line in lines[1:]):
        text.append(f"  * in one run or more the gateway's core was less than {busy}% busy")
    return "\n".join(text)


def markdown(result, busy):
    """For the page."""
    lines = list(rows(result, busy))
    text = [f"### {result['title']} (`{result['name']}`)", ""]
    columns = headings(result)
    text += ["| " + " | ".join(columns) + " |", "|---" + "|--:" * (len(columns) - 1) + "|"]
    text += ["| " + " | ".join(cell.replace(" *", "\\*") for cell in line) + " |" for line in lines]
    text += ["", *(f"- {note}" for note in notes(result))]
    return "\n".join(text).rstrip() + "\n"


BEGINS, ENDS = "<!-- results -->", "<!-- /results -->"


def keep(root, results, order, busy):
    """Puts the results beside those that stand, and writes the page and the chart anew. What was measured again replaces what was."""
    import chart

    file = root / "benches/load/results.json"
    standing = {result["name"]: result for result in json.loads(file.read_text())} if file.exists() else {}
    standing |= {result["name"]: result for result in results}
    whole = [standing[name] for name in order if name in standing]
    # A line for each workload, so that a difference shows which were measured again.
    file.write_text("[\n" + ",\n".join(json.dumps(result) for result in whole) + "\n]\n")
    picture = root / "docs/images/comparison.svg"
    picture.parent.mkdir(exist_ok=True)
    picture.write_text(chart.draw(whole))
    page = root / "docs/comparison.md"
    before, _, rest = page.read_text().partition(BEGINS)
    _, _, after = rest.partition(ENDS)
    picture_line = "![CPU per request, by workload and gateway](images/comparison.svg)"
    tables = "\n".join(markdown(result, busy) for result in whole)
    page.write_text(f"{before}{BEGINS}\n\n{picture_line}\n\n{provenance(whole)}\n\n{tables}\n{ENDS}{after}")
    return [file, picture, page]


def provenance(results):
    """When, on what, with which versions: once for each set of workloads that share them."""
    told = {}
    for result in results:
        versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
        where = result["machine"]
        text = (
            f"{result['date']}, commit {result['commit']}, {result['rounds']} rounds of {result['seconds']} s. "
            f"{where['cpu']}, {where['cores']} cores, {where['memory_gib']} GiB, {where['system']}, "
            f"Linux {where['kernel'].split('-')[0]}. {versions}."
        )
        told.setdefault(text, []).append(result["name"])
    if len(told) == 1:
        return next(iter(told))
    return "\n".join(f"- {text} Of this: {', '.join(f'`{name}`' for name in names)}." for text, names in told.items())
