"""Check the docs pages without Quarto: nbdev processes every notebook, pandoc (the engine under Quarto) renders it,
then links, anchors, images, maths and saved outputs are checked. The pages are left in `_check/`."""
import html, json, posixpath, re, shutil, subprocess, sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit
import pypandoc, yaml
from nbdev.config import get_config
from nbdev.doclinks import nbglob
from nbdev.serve import proc_nbs
sys.path.insert(0, str(Path(__file__).parent))
import build_site  # the mend of nbdev's links

cfg = get_config()
root, proc, out = cfg.config_path, cfg.config_path/'_proc', cfg.config_path/'_check'
site = f'{cfg.doc_host}{cfg.doc_baseurl}'.rstrip('/')
sources = sorted(p.relative_to(cfg.nbs_path).as_posix() for p in nbglob(as_path=True))

class Page(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.ids, self.links, self.images = set(), [], []
        self.feed(text)
    def handle_starttag(self, tag, attrs):
        a = dict(attrs)
        if 'id' in a: self.ids.add(a['id'])
        if tag=='a' and a.get('href'): self.links.append(a['href'])
        if tag=='img' and a.get('src'): self.images.append(a['src'])

def as_quarto(cells):
    "The cells as Quarto shows them: directives obeyed and removed"
    for c in cells:
        if c['cell_type']=='raw': continue
        if c['cell_type']=='code':
            src = ''.join(c['source'])
            if re.search(r'^#\|\s*output:\s*asis', src, re.M):
                md = '\n\n'.join(''.join(o.get('data',{}).get('text/markdown','')) for o in c['outputs'])
                c = dict(cell_type='markdown', source=md.lstrip('-\n '))
            else:
                hidden = re.search(r'^#\|\s*echo:\s*false', src, re.M)
                fold = re.search(r'^#\|\s*code-summary:\s*"(.*)"', src, re.M)
                c = dict(c, source='' if hidden else (f'#FOLD {fold[1]}\n' if fold else '') + re.sub(r'^#\|.*\n?', '', src, flags=re.M), execution_count=None)
                said = [''.join(o['data']['text/markdown']) for o in c['outputs'] if 'text/markdown' in o.get('data', {})]   # pandoc takes the plain text of these
                c['outputs'] = [o for o in c['outputs'] if 'text/markdown' not in o.get('data', {})]
                for o in c['outputs']:
                    if 'data' in o: o.setdefault('metadata', {})
                    if o['output_type']=='execute_result': o['execution_count'] = 1
        yield dict(c, metadata={})
        if c['cell_type']=='code': yield from (dict(cell_type='markdown', source=o, metadata={}) for o in said)

def folded(text):
    "The page `text` with the code that a `code-fold` hides in a <details>"
    return re.sub(r'(<div class="sourceCode"[^>]*>(?:(?!</div>).)*?)<span[^>]*><a[^>]*></a><span class="co">#FOLD ([^<]*)</span></span>\n?((?:(?!</div>).)*</div>)',
                  r'<details><summary>\2</summary>\1\3</details>', text, flags=re.S)

def make_pages():
    "Process and render every notebook: {notebook: its page}"
    proc_nbs(force=True, n_workers=0)    # all anew, in this process, where links are mended; also proves that `show_doc` works for every exported symbol
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    shutil.copy(cfg.nbs_path/'styles.css', out)
    res = {}
    for s in sources:
        nb = json.loads((proc/s).read_text(encoding='utf-8'))
        fm = next((yaml.safe_load(''.join(c['source']).strip('-\n ')) for c in nb['cells'] if c['cell_type']=='raw'), {})
        url = posixpath.join(posixpath.dirname(s), fm.get('output-file', Path(s).stem+'.html'))
        dest = out/url
        dest.parent.mkdir(parents=True, exist_ok=True)
        outputs = [o for c in nb['cells'] for o in c.get('outputs', [])]
        nb['cells'] = list(as_quarto(nb['cells']))
        r = subprocess.run([pypandoc.get_pandoc_path(), '-f', 'ipynb+startnum+fenced_divs+link_attributes+bracketed_spans', '-t', 'html', '-s', '--mathml', '--fail-if-warnings', '-c', 'styles.css', f'--resource-path={(proc/s).parent}',
                            '-M', f"title={fm.get('title', s)}", f'--extract-media={dest.stem}_files', '-o', dest.name],
                           input=json.dumps(nb), text=True, cwd=dest.parent, capture_output=True)
        if r.returncode==0: dest.write_text(folded(dest.read_text(encoding='utf-8')), encoding='utf-8')
        text = dest.read_text(encoding='utf-8') if r.returncode==0 else ''
        res[s] = dict(url=url, front=fm, html=text, outputs=outputs, error=r.stderr, page=Page(text) if text else None)
    return res

def problems(s, pages):
    "What is wrong with the page of the notebook `s`"
    p, by_url = pages[s], {q['url']: q for q in pages.values()}
    if not (p['front'].get('title') and p['front'].get('description')): yield 'the first cell needs "# title" and "> description"'
    for o in p['outputs']:
        if o['output_type']=='error' or o.get('name')=='stderr': yield f"saved {o['output_type']} {o.get('name','')}: {''.join(o.get('text', o.get('evalue','')))[:90]}"
    if not p['page']:
        yield p['error']
        return
    here = posixpath.dirname(p['url'])
    for link in p['page'].links:
        local = link.removeprefix(site+'/') if link.startswith(site+'/') else link
        u = urlsplit(local)
        if u.scheme: continue
        base = '' if local is not link else here
        target = posixpath.normpath(posixpath.join(base, unquote(u.path))) if u.path else p['url']
        if target in pages: target = pages[target]['url']
        if target not in by_url and not (proc/target).exists(): yield f'broken link {link}'
        elif u.fragment and target in by_url and by_url[target]['page'] and u.fragment not in by_url[target]['page'].ids: yield f'no such anchor {link}'
    code = html.unescape(re.sub('<[^>]+>', '', ' '.join(re.findall('<pre.*?</pre>', p['html'], re.S))))
    for l in re.findall(r'\[`[\w.]+`\]\(https?:[^)]*\)', code): yield f'a link in code: {l}'
    for i in p['page'].images:
        if not urlsplit(i).scheme and not (out/here/i).exists(): yield f'missing image {i}'

def test_pages():
    "One test for all pages: they are made once, and two processes would make them in each other's way"
    pages = make_pages()
    found = [f'{s}: {o}' for s in sources for o in problems(s, pages)]
    urls  = [p['url'] for p in pages.values()]
    found += [f'{s}: {p["url"]} is already the page of another notebook' for s,p in pages.items() if urls.count(p['url'])>1]
    assert '<details><summary>Answer 6</summary>' in (out/'your_turn.html').read_text(encoding='utf-8')
    assert len(pages)==len(sources)>0 and not found, '\n'.join(found)

def test_site_config():
    "The one site config is at the root, and everything it names exists"
    assert (cfg.nbs_path/'_quarto.yml').resolve() == root/'_quarto.yml'
    y = yaml.safe_load((root/'_quarto.yml').read_text(encoding='utf-8'))
    assert (cfg.nbs_path/y['format']['html']['css']).exists()
    assert set(y['format']['html']['theme'])=={'light','dark'} and y['website']['navbar']['search']
