"How many pictures a second are drawn, and written with everything around them: python results/bench/world.py"
import tempfile, time
from pathlib import Path
import pandas as pd
from pgflkd import synthetic
from pgflkd.records import add_rows, run_facts
from pgflkd.synthetic import Stage, World, compose, plan

def draw(stage, table, n):
    "Draw all pictures of `table` in batches of `n`"
    for i in range(0, len(table), n): r = compose(stage, table[i:i+n])
    return r['covered']

def write(world):
    "Write the whole world into a folder that is thrown away"
    with tempfile.TemporaryDirectory() as folder: synthetic._write(world, Path(folder), 0)

def timed(job, repeats=3):
    "Median seconds by the clock and of CPU time; the first run does not count"
    job()
    rows = []
    for _ in range(repeats):
        clock, cpu = time.perf_counter(), time.process_time()
        job()
        rows.append((time.perf_counter()-clock, time.process_time()-cpu))
    return pd.DataFrame(rows, columns=['clock','cpu']).median()

if __name__=='__main__':
    world = World(n_train=16, n_test=1, n_distractors=0)
    stage = Stage(world, 0)
    table = plan(world, 0, stage.cams)
    n = synthetic._batch(world.size)
    rows = []
    for part,job in dict(render=lambda: draw(stage, table, n), world=lambda: write(world)).items():
        seconds = timed(job)
        rows.append(dict(part=part, size='128x64', pictures=len(table), seconds=round(seconds.clock, 3),
                         per_second=round(len(table)/seconds.clock, 1),
                         per_cpu_second=round(len(table)/seconds.cpu, 1)))
    print(add_rows(Path(__file__).with_suffix('.csv'), pd.DataFrame(rows).assign(**run_facts('cpu'))))
