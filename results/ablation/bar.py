"The running bar of the course: how much of the response lies on the obstacle, for rows of an ablation"
from pathlib import Path
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from pgflkd.interpret import RESPONSE_CMAP

HERE = Path(__file__).parent

def running_bar(
    *rows:str,                   # rows of Table 6, as `pgflkd_ablate` names them
    title:str,                   # what to notice
    record:pd.DataFrame|None=None, # table with `row` and `response_on_obstacle`; None: that in `folder`
    folder:str|Path=HERE/'small', # holds diagnosis.csv, and shares.csv with the area of the obstacles
):                               # axes, or None where nothing is recorded
    "Bars of the share of the response on the obstacle, a dot a seed; dotted: the share of the picture that it covers"
    folder = Path(folder)
    if not (folder/'diagnosis.csv').exists(): return print(f'{folder.name} holds no runs: pgflkd_ablate makes them')
    if record is None: record = pd.read_csv(folder/'diagnosis.csv')
    by = record[record.row.isin(rows)].groupby('row').response_on_obstacle
    names = [row for row in rows[::-1] if row in by.groups]
    fig,ax = plt.subplots(figsize=(5.5,.9+.3*len(names)), dpi=80, layout='constrained')
    ax.barh(names, by.mean()[names], color=plt.get_cmap(RESPONSE_CMAP)(np.linspace(.7, .35, len(names))))
    for i,name in enumerate(names): ax.plot(by.get_group(name), [i]*len(by.get_group(name)), 'k.', ms=4)
    ax.axvline(pd.read_csv(folder/'shares.csv').area.mean(), color='k', ls=':')
    ax.set(xlim=(0,1), xlabel='share of the response on the obstacle')
    fig.suptitle(title, fontsize=11)
    return ax
