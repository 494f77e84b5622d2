"""The front page's forest plot: gains over the baseline with their intervals, for two starts.

    python results/ablation/forest.py            # writes nbs/images/forest.png
"""
import matplotlib
import matplotlib.pyplot as plt
from report import HERE, SETS, quick_gains, whiskers

NAMES = {
    'PGFL-KD': 'PGFL-KD',
    'PGFL-KD other': 'PGFL-KD, wrong joints',
    'where': 'where',
    'where other': 'where, wrong joints',
    'prior': 'one fixed map',
    'hidden': 'obstacles pasted on half',
    'pair': 'covered copies',
    'pair where': 'covered copies and where',
    'pair where other': 'the same, wrong joints',
}
STARTS = dict(imagenet16='From ImageNet weights',
              quick='From the shipped student')

def panels(pair, table, rows):
    "The `rows` of `table` on a `pair` of axes: occluded queries on the left, holistic ones on the right"
    for ax, query_set in zip(pair, SETS[:2]):
        whiskers(ax, table[table.query_set==query_set].set_index('row').loc[rows])
    pair[0].set_yticks(range(len(rows)), [NAMES[r] for r in rows], fontsize=9)
    pair[0].set_ylim(len(rows)-.5, -.5)

def draw(tables):
    "A pair of panels for each start of `tables`"
    rows = {start: [r for r in NAMES if r in set(t.row)] for start, t in tables.items()}
    heights = [len(o) for o in rows.values()]
    fig, axs = plt.subplots(len(tables), 2, figsize=(5.6, 1.6+.3*sum(heights)), dpi=200, sharey='row', sharex=True,
                            squeeze=False, layout='constrained', height_ratios=heights)
    for pair, (start, table) in zip(axs, tables.items()):
        panels(pair, table, rows[start])
        pair[0].set_title(STARTS[start], fontsize=10, loc='left')
    for ax, query_set in zip(axs[-1], SETS[:2]): ax.set_xlabel(f'{query_set} queries', fontsize=9)
    axs[-1,0].set_xticks([-10, -5, 0, 5])
    title = 'mAP ahead of the baseline: where helps a network\nthat never saw an obstacle, and not one that did'
    fig.suptitle(title, fontsize=10)
    return fig

if __name__=='__main__':
    matplotlib.use('agg')
    figure = draw({start: quick_gains(list(NAMES), folder=start) for start in STARTS})
    figure.savefig(HERE.parents[1]/'nbs/images/forest.png')
