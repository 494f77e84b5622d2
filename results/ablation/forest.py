"""The front page's forest plot: gains over the baseline with their intervals, from the rows in `quick/`.

    python results/ablation/forest.py            # writes images/forest.png
"""
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt

from pgflkd.commands.ablate import gain_table

ROOT = Path(__file__).resolve().parents[2]
ROWS = {'PGFL-KD': 'PGFL-KD', 'PGFL-KD other': '  with another person\'s joints', 'where': 'where', 'where other': '  with another person\'s joints',
        'prior': 'one fixed map', 'hidden': 'obstacles pasted on half', 'pair': 'covered copies', 'pair where': 'covered copies and where',
        'pair where other': '  with another person\'s joints'}
COLOUR = dict(gain='#1a7f37', loss='#b3261e', tie='#7a7a7a')

def draw(gains, path):
    "Write the picture of `gains` to `path`"
    rows = [row for row in ROWS if row in set(gains.row)]
    fig, axs = plt.subplots(1, 2, figsize=(7.2, .9+.34*len(rows)), dpi=160, sharey=True, layout='constrained')
    for ax, query_set in zip(axs, ('occluded', 'holistic')):
        of = gains[gains.query_set==query_set].set_index('row')
        for y, row in enumerate(rows):
            o = of.loc[row]
            placebo = row.endswith('other')
            ax.plot([o.low, o.high], [y, y], color=COLOUR[o.verdict], lw=2)
            ax.plot(o.gain, y, 'o', color=COLOUR[o.verdict], mfc='white' if placebo else COLOUR[o.verdict], ms=6)
        ax.axvline(0, color='black', lw=.8)
        ax.set_title(f'{query_set} queries, baseline {of.loc["baseline"].mAP:.1f}', fontsize=10)
        ax.set_xlabel('gain in points of mAP')
        ax.grid(axis='x', alpha=.3)
    axs[0].set_yticks(range(len(rows)), [ROWS[row] for row in rows], fontsize=9)
    axs[0].invert_yaxis()
    fig.savefig(path)

if __name__=='__main__':
    matplotlib.use('agg')
    draw(gain_table(ROOT/'results/ablation/quick'), ROOT/'images/forest.png')
