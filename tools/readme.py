"Write README.md from nbs/index.ipynb; `--check` only says whether it is up to date."
import json, re, subprocess, sys
from pathlib import Path
import pypandoc

root = Path(__file__).resolve().parent.parent

def readme():
    nb = json.loads((root/'nbs/index.ipynb').read_text(encoding='utf-8'))
    nb['cells'] = [c for c in nb['cells'] if '#| hide' not in ''.join(c['source'])]
    for c in nb['cells']:
        src = ''.join(c['source'])
        if '#| echo: false' in src:   # what it shows, without the code
            c.update(cell_type='markdown', source='\n\n'.join(''.join(o['data']['text/markdown']) for o in c.pop('outputs')))
            del c['execution_count']
    r = subprocess.run([pypandoc.get_pandoc_path(), '-f', 'ipynb', '-t', 'gfm-raw_html', '--wrap=none'],
                       input=json.dumps(nb), text=True, capture_output=True, check=True)
    return '<!-- Made from nbs/index.ipynb by tools/readme.py: edit it there. -->\n\n' + r.stdout

if __name__=='__main__':
    fn = root/'README.md'
    if '--check' in sys.argv: sys.exit(None if fn.exists() and fn.read_text(encoding='utf-8')==readme() else 'README.md is not what nbs/index.ipynb says: run python tools/readme.py')
    fn.write_text(readme(), encoding='utf-8')
