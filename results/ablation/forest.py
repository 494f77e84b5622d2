"""The front page's forest plot: gains over the baseline with their intervals, from the rows in `quick/`.

    python results/ablation/forest.py            # writes nbs/images/forest.png
"""
import matplotlib
from report import HERE, forest, quick_gains

NAMES = {
    'PGFL-KD': 'PGFL-KD',
    'PGFL-KD other': "PGFL-KD, another person's joints",
    'where': 'where',
    'where other': "where, another person's joints",
    'prior': 'one fixed map',
    'hidden': 'obstacles pasted on half',
    'pair': 'covered copies',
    'pair where': 'covered copies and where',
    'pair where other': "the same, another person's joints",
}

TITLE = 'Gains over fine-tuning the same student plainly'

if __name__=='__main__':
    matplotlib.use('agg')
    figure = forest(quick_gains(list(NAMES)), TITLE, NAMES)
    figure.savefig(HERE.parents[1]/'nbs/images/forest.png')
