"""Draw the loss under flooding as it is trained: ``python docs/animation.py``.

The curves are those of two real trainings, the public demo's Sinusoid with Adam, which are run or
looked up in the ledger. The picture moves once, for five seconds, and not at all where the reader
asked for less motion.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from flooding import Record, Run, run_all
from flooding.atomic import write_atomic
from flooding.tasks import adam, demo_sinusoid

FILE = Path(__file__).parent / "images" / "flooding.svg"
LEVEL = 0.26
WIDTH, HEIGHT = 640, 400
LEFT, RIGHT, TOP, BOTTOM = 62, 476, 34, 342
SECONDS = 4.8
EVERY = 2  # epochs between two points

STYLE = """
  text { font: 500 22px system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; fill: #33404d }
  .small { font-size: 20px; fill: #566270 }
  .plain { stroke: #c2410c } .flooded { stroke: #0b5cad }
  text.plain { fill: #b03a09; stroke: none } text.flooded { fill: #0b5cad; stroke: none }
  .line { fill: none; stroke-width: 4; stroke-linejoin: round; stroke-linecap: round }
  .training { stroke-width: 3; stroke-dasharray: 7 6; stroke-linecap: butt }
  .water { fill: #4aa8ff; opacity: 0.22 }
  .surface { fill: none; stroke: #0b5cad; stroke-width: 1.5; opacity: 0.55 }
  @keyframes reveal { from { transform: scaleX(0) } to { transform: scaleX(1) } }
  @keyframes appear { from { opacity: 0 } to { opacity: 1 } }
  @keyframes drift { from { transform: translateX(0) } to { transform: translateX(-80px) } }
  .reveal { animation: reveal SECONDSs linear both; transform-origin: LEFTpx 0 }
  .appear { animation: appear 0.6s ease-out both }
  .drift { animation: drift SECONDSs ease-out both }
  @media (prefers-reduced-motion: reduce) {
    .reveal, .appear, .drift { animation: none }
  }
"""


def train() -> tuple[Record, Record]:
    """Train without and with flooding, or look the trainings up."""
    problem = demo_sinusoid(adam)
    plain, flooded = run_all([Run(problem, 0.0), Run(problem, LEVEL)])
    return plain, flooded


def draw(plain: Record, flooded: Record, level: float) -> str:
    """Write the picture.

    Args:
        plain: The training without flooding.
        flooded: The training with flooding.
        level: Its level.

    Returns:
        An SVG.
    """
    curves = {}
    for group, record in (("plain", plain), ("flooded", flooded)):
        for kind, name in (("training", "train_loss"), ("test", _test_name(record))):
            curves[group, kind] = np.asarray(record.curves[name], float)
    last = max(map(len, curves.values())) - 1
    highest = 1.03 * max(float(np.nanmax(curve)) for curve in curves.values())

    def x_of(epoch: float) -> float:
        return LEFT + (RIGHT - LEFT) * epoch / last

    def y_of(loss: float) -> float:
        return BOTTOM - (BOTTOM - TOP) * loss / highest

    def path(curve: np.ndarray) -> str:
        known = [n for n in range(len(curve)) if np.isfinite(curve[n])]
        # Test curves are measured now and then: all of their points are drawn.
        picked = [n for n in known if n % EVERY == 0 or n == last or len(known) < last]
        return "M" + "L".join(f"{x_of(n):.1f} {y_of(curve[n]):.1f}" for n in picked)

    surface = y_of(level)
    waves = "".join(" q 10 -5 20 0 t 20 0" for _ in range(13))
    lines, labels = [], []
    for (group, kind), curve in curves.items():
        lines.append(f'<path class="line {group} {kind}" d="{path(curve)}"/>')
    ends = {key: y_of(float(curve[np.isfinite(curve)][-1])) for key, curve in curves.items()}
    texts = {
        ("plain", "test"): ("test loss", "without"),
        ("flooded", "test"): ("test loss", "with flooding"),
        ("flooded", "training"): ("training loss", "with flooding"),
        ("plain", "training"): ("training loss", "without"),
    }
    # From the bottom up, each pair of lines at its curve's end or above the pair below it.
    limit = BOTTOM - 8.0
    for key in sorted(texts, key=lambda key: -ends[key]):
        y = min(ends[key] + 14, limit)
        limit = y - 51
        for row, text in enumerate(texts[key]):
            labels.append(
                f'<text class="appear {key[0]}" style="animation-delay:{SECONDS - 1.2:g}s" '
                f'x="{RIGHT + 12}" y="{y - 23 * (1 - row):.0f}">{text}</text>'
            )
    ticks = [
        f'<text class="small" x="{LEFT - 8}" y="{y_of(value) + 6:.0f}" text-anchor="end">'
        f"{value:g}</text>"
        for value in np.arange(0, highest, 0.5)
    ]
    ticks += [
        f'<text class="small" x="{x_of(epoch):.0f}" y="{BOTTOM + 26}" text-anchor="middle">'
        f"{epoch:g}</text>"
        for epoch in np.linspace(0, last, 3)
    ]
    style = STYLE.replace("SECONDS", f"{SECONDS:g}").replace("LEFT", str(LEFT))
    title = f"Loss by epoch without flooding, and with flooding at level {level:g}"
    text = (
        "Without flooding the training loss falls to zero and the test loss rises. With flooding "
        "the training loss stays at the level, and the test loss stays low. From a real training."
    )
    newline = "\n"
    return f"""<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" \
aria-labelledby="title text">
<title id="title">{title}</title>
<desc id="text">{text}</desc>
<style>{style}</style>
<clipPath id="plot"><rect x="{LEFT}" y="{TOP - 8}" width="{RIGHT - LEFT}" \
height="{BOTTOM - TOP + 10}"/></clipPath>
<clipPath id="done"><rect class="reveal" x="{LEFT - 4}" y="0" width="{RIGHT - LEFT + 8}" \
height="{HEIGHT}"/></clipPath>
<rect width="{WIDTH}" height="{HEIGHT}" rx="12" fill="#ffffff"/>
<g clip-path="url(#plot)"><g class="drift">
<path class="water" d="M{LEFT} {surface:.1f}{waves} V{BOTTOM} H{LEFT} Z"/>
<path class="surface" d="M{LEFT} {surface:.1f}{waves}"/>
</g></g>
<path d="M{LEFT} {TOP}V{BOTTOM}H{RIGHT}" fill="none" stroke="#8a95a1"/>
{newline.join(ticks)}
<text class="small" x="{(LEFT + RIGHT) / 2:.0f}" y="{HEIGHT - 8}" text-anchor="middle">epoch</text>
<text class="small" x="{LEFT - 46}" y="{TOP - 12}">loss</text>
<text class="small flooded" x="{RIGHT - 6}" y="{BOTTOM - 10}" text-anchor="end">flood level \
{level:g}</text>
<g clip-path="url(#done)">
{newline.join(lines)}
</g>
{newline.join(labels)}
</svg>
"""


def _test_name(record: Record) -> str:
    """Name the test curve, on clean labels where there are any."""
    return "test_loss_clean" if "test_loss_clean" in record.curves else "test_loss"


if __name__ == "__main__":
    write_atomic(FILE, draw(*train(), LEVEL))
