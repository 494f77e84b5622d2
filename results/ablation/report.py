"Tables and figures of the results pages, made of what `pgflkd_ablate` recorded in the folders beside this file"
from pathlib import Path
from zlib import crc32

import matplotlib.pyplot as plt
import pandas as pd

HERE = Path(__file__).parent
SETS = ['occluded', 'holistic', 'partial']
COLORS = dict(occluded='#c1272d', holistic='#2b7bba', partial='#7b3294')
VERDICTS = dict(gain='#1a7f37', loss='#b3261e', tie='#7a7a7a')
RECIPES = dict(
    quick='Recipe QUICK: MobileNetV2 from the shipped student, 128x64, map 16x8, four epochs; '
          '150 people to learn from, 400 test people, 800 queries a set',
    imagenet16='Recipe: as QUICK, but MobileNetV2 from ImageNet weights, which never saw a pasted obstacle, and nine '
               'epochs',
    market16='Recipe: MobileNetV2 from ImageNet weights, 128x64, map 16x8, three epochs, triplets between unit '
             'vectors; 500 people of Market-1501 to learn from, 100 others to find, 452 queries a set',
    resnet18='Recipe: ResNet-18 from random weights, 128x64, map 8x4, six epochs of one cycle, triplets between unit '
             'vectors; 150 people to learn from, 60 test people, 120 queries a set; seeds 0, 1, 2',
    imagenet='Recipe: MobileNetV2 from ImageNet weights, 128x64, map 16x8, six epochs of one cycle, triplets between '
             'unit vectors; 150 people to learn from, 60 test people, 120 queries a set; seeds 0, 1, 2',
    market='Recipe: MobileNetV2 from ImageNet weights, 128x64, map 8x4, three epochs, triplets between unit vectors; '
           '500 people of Market-1501 to learn from, 100 others to find, 452 queries a set; two trainings',
    market_r50='Recipe: ResNet-50 that learned on the rendered world, then two epochs on the photographs, 128x64, '
               'map 8x4, triplets between unit vectors; people as for MobileNetV2; two trainings')

def recorded(
    folder:str,          # for example 'resnet18'
    name:str='runs',     # runs, diagnosis, history or stress
    rows:list|None=None, # only these rows of the plan
):                       # a table; None if nothing was recorded
    "What was recorded in `folder`, here or in earlier/"
    path = next((o for o in (HERE/folder, HERE/'earlier'/folder) if (o/f'{name}.csv').exists()), None)
    if path is None: return None
    df = pd.read_csv(path/f'{name}.csv')
    return df if rows is None else df[df.row.isin(rows)]

def gains(
    df:pd.DataFrame,     # from `recorded`
    base:str='baseline', # the row that the others are compared with
    feature:str='f_g',   # f_g is what is deployed
):                       # row, seed, query_set, gain
    "Points of mAP by which each row is ahead of the row `base` of the same seed"
    mAP = df[df.feature==feature].set_index(['row', 'seed', 'query_set']).mAP*100
    theirs = mAP.xs(base).reindex(mAP.index.droplevel('row')).to_numpy()
    points = (mAP-theirs).drop(base, level='row').dropna().rename('gain').reset_index()
    return points.sort_values('seed', kind='stable')

def words(values):
    "The mean of `values`, a value a seed, then each of them"
    each = ' '.join(f'{v:+.1f}' for v in values)
    return f'{values.mean():+.1f} ({each})'

def gain_words(
    df:pd.DataFrame,     # from `recorded`
    base:str='baseline', # the row that the others are compared with
    rows:list|None=None, # in this order; None: as recorded
    sets:list=SETS[:2],  # query sets
):                       # a line a row, a column a query set
    "How far each row is ahead of `base`: the mean over the seeds and, in brackets, each seed"
    text = gains(df, base).groupby(['row', 'query_set'], sort=False).gain.agg(words).unstack()
    return text.reindex([r for r in rows or text.index if r in text.index])[sets]

def step_words(
    df:pd.DataFrame,    # from `recorded`
    rows:list,          # in the order of the paper
    sets:list=SETS[:2], # query sets
):                      # a line a step
    "What each of `rows` adds to the one before it, in the form of `gain_words`"
    steps = [gain_words(df[df.row.isin(pair)], pair[0], sets=sets) for pair in zip(rows, rows[1:])]
    return pd.concat(steps).set_axis([f'{after}, over {before}' for before, after in zip(rows, rows[1:])])

def mean_map(
    df:pd.DataFrame,    # from `recorded`
    index:str='row',    # or 'feature'
    order:list|None=None, # of the lines
    sets:list=SETS[:2], # query sets
):                      # mAP in percent
    "The mean of mAP over the seeds, a column a query set"
    table = (df.groupby([index, 'query_set'], sort=False).mAP.mean()*100).unstack()[sets].round(1)
    return table if order is None else table.reindex([o for o in order if o in table.index])

def captioned(
    df:pd.DataFrame,  # a table to show
    caption:str,      # its name and its recipe
):                    # the table with `caption` above it
    "A table that says which recipe it is of"
    css = [dict(selector='caption', props='caption-side: top; text-align: left; font-size: .9em')]
    df = df.copy()
    df.index.names, df.columns.names = [None]*df.index.nlevels, [None]*df.columns.nlevels
    style = df.style.set_caption(caption).set_table_styles(css).format(precision=1, na_rep='')
    return style.set_uuid(f'{crc32(caption.encode()):08x}')

def quick_gains(
    rows:list,               # of the plan; those that are not there yet are left out
    against:str='baseline',  # the row that they are compared with
    folder:str='quick',      # or 'imagenet16'
    feature:str='',          # of both, see `gain_table`
):                           # see `gain_table`; None if none of the rows was recorded
    "Paired gains with intervals from `folder`, of occluded and holistic queries"
    from pgflkd.commands.ablate import gain_table
    if recorded(folder) is None: return None
    table = gain_table(HERE/folder, against, feature)
    if not len(table): return None
    table = table[table.row.isin(rows) & (table.row!=against) & table.query_set.isin(SETS[:2])]
    return table if len(table) else None

def gain_lines(table):
    "What `quick_gains` found, for reading: gain, interval, verdict and each seed; a line a row, a column a query set"
    text = [f'{o.gain:+.1f} [{o.low:+.1f}, {o.high:+.1f}] {o.verdict} ({o.each_seed})' for o in table.itertuples()]
    return table.assign(text=text).groupby(['row', 'query_set'], sort=False).text.first().unstack()[SETS[:2]]

def answer(
    folder:str,          # for example 'imagenet16'
    row:str='PGFL-KD',   # of the plan
):                       # query set -> gain in words
    "How far `row` is ahead of its baseline: with an interval where the AP of each query was kept, else each seed"
    if (HERE/folder/'ap').exists(): return gain_lines(quick_gains([row], folder=folder)).loc[row]
    return gain_words(recorded(folder, rows=['baseline', row])).loc[row]

def forest(
    table:pd.DataFrame,      # from `quick_gains`
    title:str,               # what to notice
    names:dict|None=None,    # row -> what stands beside it
    against:str='baseline',  # for the label
):                           # the figure
    "A dot and its 95 % interval for each row; placebos are hollow"
    rows = [r for r in names or dict.fromkeys(table.row) if r in set(table.row)]
    fig, axs = plt.subplots(1, 2, figsize=(7.2, 1.2+.34*len(rows)), dpi=160, sharey=True, layout='constrained')
    for ax, query_set in zip(axs, SETS[:2]):
        whiskers(ax, table[table.query_set==query_set].set_index('row').loc[rows])
        ax.set_title(f'{query_set} queries', fontsize=10)
        ax.set_xlabel(f'mAP points ahead of {against}', fontsize=9)
    axs[0].set_yticks(range(len(rows)), [(names or {}).get(r, r) for r in rows], fontsize=9)
    axs[0].set_ylim(len(rows)-.5, -.5)
    fig.suptitle(title, fontsize=11)
    return fig

def whiskers(ax, of):
    "A dot and an interval on `ax` for each row of the table `of`"
    for y, (row, o) in enumerate(of.iterrows()):
        placebo = row.endswith(('other', 'cells', 'prior'))
        color = VERDICTS[o.verdict]
        ax.plot([o.low, o.high], [y, y], color=color, lw=2)
        ax.plot(o.gain, y, 'o', color=color, mfc='white' if placebo else color, ms=6)
    ax.axvline(0, color='black', lw=.8)
    ax.grid(axis='x', alpha=.3)

def steps(
    folder:str,  # for example 'imagenet16'
    chain:list,  # rows, each with one thing more than the one before it
):               # row, query_set, gain, low, high, verdict: a line a step and query set
    "What each row of `chain` adds to the one before it, by the seeds that all of them have"
    found = [quick_gains([after], before, folder) for before, after in zip(chain, chain[1:])]
    table = pd.concat(found, ignore_index=True)
    assert table.each_seed.str.split().str.len().nunique()==1, 'run the same seeds of each row'
    return table

def waterfall(
    table:pd.DataFrame,  # from `steps`
    title:str,           # what to notice
    names:dict,          # row -> what is new in it
):                       # the figure
    "A bar for each step, begun where the last one ended, with its 95 % interval; the sum below"
    rows = [*dict.fromkeys(table.row)]
    fig, axs = plt.subplots(1, 2, figsize=(7.2, 1.4+.36*len(rows)), dpi=160, sharey=True, layout='constrained')
    for ax, query_set in zip(axs, SETS[:2]):
        _stairs(ax, table[table.query_set==query_set].set_index('row').loc[rows])
        ax.set_title(f'{query_set} queries', fontsize=10)
        ax.set_xlabel('mAP ahead of the baseline', fontsize=9)
    axs[0].set_yticks(range(len(rows)+1), [*(names[r] for r in rows), 'together'], fontsize=9)
    axs[0].set_ylim(len(rows)+.6, -.6)
    fig.suptitle(title, fontsize=11)
    return fig

def _stairs(ax, of):
    "A bar on `ax` for each row of `of`, begun where the last one ended, with its interval; below them the sum"
    whole, below = of.gain.sum(), len(of)
    end = of.gain.cumsum()
    ax.barh(range(below), of.gain, left=end-of.gain, color=[VERDICTS[v] for v in of.verdict], height=.6)
    ax.errorbar(end, range(below), xerr=[of.gain-of.low, of.high-of.gain], fmt='none', ecolor='black', lw=1)
    ax.barh(below, whole, color='#444444', height=.6)
    told = zip([*(end-of.gain+of.high.clip(0)), max(whole, 0)], [*of.gain, whole])
    how = dict(va='center', fontsize=9, bbox=dict(color='white', pad=1))
    for y, (x, value) in enumerate(told): ax.text(x+.15, y, f'{value:+.1f}', **how)
    ax.axvline(0, color='black', lw=.8)
    ax.margins(x=.25)

def leads(
    df:pd.DataFrame,           # from `recorded`
    rows:list,                 # of the plan
    features:list,             # of those that need a pose at test time
    query_set:str='occluded',  # of the queries
):                             # row, feature, seed, lead
    "Points of mAP by which features that still see the pose are ahead of the baseline's f_G of the same seed"
    mAP = df[(df.query_set==query_set) & df.row.isin(rows)].set_index(['row', 'feature', 'seed']).mAP.sort_index()*100
    base = mAP.loc['baseline', 'f_g']
    found = mAP[mAP.index.get_level_values('feature').isin(features)]
    lead = found - base.reindex(found.index.get_level_values('seed')).to_numpy()
    return lead.rename('lead').reset_index().dropna()

def note(folder, text):
    "`text`, or what to say where `folder` holds no runs yet"
    missing = f'*`results/ablation/{folder}` holds no such rows yet; this cell shows them as soon as it does.*'
    return missing if text is None else text
