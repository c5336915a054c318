"""The chart of the README: CPU per request in bars, as an SVG that can be read on light and on dark paper."""

from html import escape

# What the picture shows, of what was measured.
SHOWN = [
    ("plain", "plain proxying"),
    ("ip_rules_limit", "IP rules and limit"),
    ("api_key_1000000", "+ API key, one of a million"),
    ("jwt_rs256", "+ JWT, RS256"),
    ("jwt_es256", "+ JWT, ES256"),
    ("refused_signature", "refused: bad signature"),
]
NAMES = {
    "edgeward": "edgeward",
    "edgeward_pgo": "same, make pgo",
    "bare": "bare Pingora",
    "haproxy": "HAProxy",
    "nginx": "nginx",
    "envoy": "Envoy",
    "pingap": "pingap",
}
ORDER = list(NAMES)

WIDTH, LEFT, RIGHT = 760, 120, 80
BAR, GAP, GROUP = 16, 3, 44

STYLE = """
text { font: 13px system-ui, -apple-system, "Segoe UI", Helvetica, Arial, sans-serif; fill: #1f2328; }
.title { font-weight: 600; font-size: 15px; }
.group { font-weight: 600; }
.quiet { fill: #59636e; font-size: 12px; }
.ours text, text.ours { font-weight: 600; }
rect { fill: #8c959f; }
rect.ours { fill: #0a7a3d; }
rect.floor { fill: #c4cad1; }
@media (prefers-color-scheme: dark) {
  text { fill: #f0f6fc; }
  .quiet { fill: #9198a1; }
  rect { fill: #6e7681; }
  rect.ours { fill: #3fb950; }
  rect.floor { fill: #444c56; }
}
"""


def draw(results):
    by_name = {result["name"]: result for result in results}
    groups = [(title, by_name[name]) for name, title in SHOWN if name in by_name] or [
        (result["title"], result) for result in results[:6]
    ]
    most = max(peer["median"]["cpu_us"] for _, result in groups for name, peer in result["peers"].items() if name in NAMES)
    scale = (WIDTH - LEFT - RIGHT) / most
    parts, y = [], 30
    parts.append(text(0, y, "Gateway CPU per request, microseconds: shorter is better", "title"))
    y += 12
    for title, result in groups:
        y += GROUP - BAR
        parts.append(text(0, y, title, "group"))
        y += 8
        for name in ORDER:
            if name not in result["peers"]:
                continue
            value = result["peers"][name]["median"]["cpu_us"]
            kind = {"edgeward": "ours", "edgeward_pgo": "ours", "bare": "floor"}.get(name, "")
            middle = y + BAR - 4
            parts.append(text(LEFT - 8, middle, NAMES[name], kind, "end"))
            parts.append(f'<rect x="{LEFT}" y="{y}" width="{max(1.0, value * scale):.1f}" height="{BAR}" rx="2" class="{kind}"/>')
            parts.append(text(LEFT + value * scale + 6, middle, f"{value:.1f}", kind))
            y += BAR + GAP
    last = groups[-1][1]
    y += 26
    told = f"{last['date']}, one core each, one worker; medians of {last['rounds']} interleaved runs; make bench-load"
    parts.append(text(0, y, told, "quiet"))
    height = y + 14
    size = f'viewBox="-12 0 {WIDTH + 24} {height}" width="{WIDTH + 24}" height="{height}"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img"'
    title = "<title>Gateway CPU per request, by workload and gateway</title>"
    return "\n".join([f"{head}>", title, f"<style>{STYLE}</style>", *parts, "</svg>\n"])


def text(x, y, words, kind="", anchor="start"):
    return f'<text x="{x:.1f}" y="{y}" text-anchor="{anchor}" class="{kind}">{escape(words)}</text>'
