"The pages of the site: links, anchors, images, maths and saved outputs."
import html
import posixpath
import re
import sys
from pathlib import Path
from urllib.parse import unquote, urlsplit

import yaml

from pgflkd._modidx import d as index

root = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(root/'tools'))
import pages as site

def bad_outputs(page):
    "Errors and warnings among the saved outputs of `page`"
    for o in page['outputs']:
        if o['output_type']!='error' and o.get('name')!='stderr': continue
        yield f"saved {o['output_type']} {o.get('name', '')}: {''.join(o.get('text', o.get('evalue', '')))[:90]}"

def bad_links(page, pages):
    "Links of `page` that lead nowhere"
    by_url = {q['url']: q for q in pages.values()}
    here = posixpath.dirname(page['url'])
    for link in page['page'].links:
        local = link.removeprefix(site.SITE+'/') if link.startswith(site.SITE+'/') else link
        parts = urlsplit(local)
        if parts.scheme: continue
        base = '' if local is not link else here
        target = posixpath.normpath(posixpath.join(base, unquote(parts.path))) if parts.path else page['url']
        if target in pages: target = pages[target]['url']
        if target not in by_url and not (site.PROC/target).exists(): yield f'broken link {link}'
        ids = getattr(by_url.get(target, {}).get('page'), 'ids', None)
        if parts.fragment and ids is not None and parts.fragment not in ids:
            yield f'no such anchor {link}'

def told_twice(page):
    "Exported names whose parameters stand on `page` twice in sight: as a signature and in the source"
    in_sight = re.sub('<details>.*?</details>', '', page['html'], flags=re.S)
    blocks = '\n'.join(re.findall('<pre.*?</pre>', in_sight, re.S))
    defined = re.findall(r'^(?:def|class) (\w+)', re.sub('<[^>]+>', '', blocks), re.M)
    names = {symbol.split('.')[-1] for symbols in index['syms'].values() for symbol in symbols}
    return [name for name in names if defined.count(name)>1]

def problems(name, pages):
    "What is wrong with the page of the notebook `name`"
    page = pages[name]
    if not (page['front'].get('title') and page['front'].get('description')):
        yield 'the first cell needs "# title" and "> description"'
    yield from bad_outputs(page)
    if not page['page']:
        yield page['error']
        return
    yield from bad_links(page, pages)
    blocks = ' '.join(re.findall('<pre.*?</pre>', page['html'], re.S))
    code = html.unescape(re.sub('<[^>]+>', '', blocks))
    for link in re.findall(r'\[`[\w.]+`\]\(https?:[^)]*\)', code): yield f'a link in code: {link}'
    for twice in told_twice(page): yield f'{twice}: its signature stands beside its source'
    here = posixpath.dirname(page['url'])
    for image in page['page'].images:
        if not urlsplit(image).scheme and not (site.OUT/here/image).exists(): yield f'missing image {image}'

def test_pages():
    "One test for all pages: they are made once, and two processes would make them in each other's way"
    pages = site.make_pages()
    found = [f'{name}: {o}' for name in pages for o in problems(name, pages)]
    urls = [p['url'] for p in pages.values()]
    found += [f'two notebooks have the page {url}' for url in urls if urls.count(url)>1]
    last = (site.OUT/'course/your_turn.html').read_text(encoding='utf-8')
    assert '<details><summary>Answers 5 and 6</summary>' in last
    assert len(pages)==len(site.SOURCES)>0 and not found, '\n'.join(found)

def test_site_config():
    "The one site config is at the root, and everything it names exists"
    nbs = root/'nbs'
    assert (nbs/'_quarto.yml').resolve()==root/'_quarto.yml'
    y = yaml.safe_load((root/'_quarto.yml').read_text(encoding='utf-8'))
    assert (nbs/y['format']['html']['css']).exists()
    assert set(y['format']['html']['theme'])=={'light', 'dark'} and y['website']['navbar']['search']
    assert site.SITE=='https://pgflkd.github.io/pgflkd'
