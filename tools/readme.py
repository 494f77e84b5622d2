"Write README.md from nbs/index.ipynb; `--check` only says whether it is up to date."
import configparser
import json
import subprocess
import sys
from pathlib import Path
from urllib.parse import quote

import pypandoc

ROOT = Path(__file__).resolve().parent.parent

def badges():
    "What is true of the package, by settings.ini, as a line of badges"
    config = configparser.ConfigParser()
    config.read(ROOT/'settings.ini')
    s = config['DEFAULT']
    shown = [('tests', 'pytest and every notebook', f"{s['git_url']}/actions/workflows/gate.yml"),
             ('docs', 'course and reference', s['doc_host'] + s['doc_baseurl']),
             ('licence', {'apache2': 'Apache 2.0'}[s['license']], f"{s['git_url']}/blob/{s['branch']}/LICENSE"),
             ('python', f"{s['min_python']} or newer", f"{s['git_url']}/blob/{s['branch']}/settings.ini")]
    return ' '.join(f'[![{name}: {text}](https://img.shields.io/badge/{name}-{quote(text)}-blue)]({link})'
                    for name, text, link in shown)

def readme():
    "The text of README.md"
    nb = json.loads((ROOT/'nbs/index.ipynb').read_text(encoding='utf-8'))
    nb['cells'] = [c for c in nb['cells'] if '#| hide' not in ''.join(c['source'])]
    for cell in nb['cells']:
        if '#| echo: false' not in ''.join(cell['source']): continue
        shown = [''.join(o['data']['text/markdown']) for o in cell.pop('outputs')]   # what it shows, without the code
        cell.update(cell_type='markdown', source='\n\n'.join(shown))
        del cell['execution_count']
    command = [pypandoc.get_pandoc_path(), '-f', 'ipynb', '-t', 'gfm-raw_html', '--wrap=none']
    r = subprocess.run(command, input=json.dumps(nb), text=True, capture_output=True, check=True)
    head, _, rest = r.stdout.partition('\n')                  # "# pgflkd"
    made_from = '<!-- Made from nbs/index.ipynb by tools/readme.py: edit it there. -->'
    return f'{made_from}\n\n{head}\n\n{badges()}\n{rest}'

if __name__=='__main__':
    path = ROOT/'README.md'
    if '--check' not in sys.argv: path.write_text(readme(), encoding='utf-8')
    elif not path.exists() or path.read_text(encoding='utf-8')!=readme():
        sys.exit('README.md is not what nbs/index.ipynb says: run python tools/readme.py')
