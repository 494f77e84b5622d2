"""Open the rendered pages in headless Chromium: python tools/drive_pages.py SCREENSHOTS/ [page ...]   (needs selenium, chromium, chromium-driver; make the pages first: python -m pytest -q tests/test_docs.py)
Each page at desktop and phone width: does it scroll sideways, did a script fail, was anything fetched from elsewhere, is every picture there, and does every slider change its picture? Says what is wrong, exit status 1."""
import sys, tempfile, time
from pathlib import Path
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

root  = Path(__file__).resolve().parent.parent
sizes = {'desktop': (1200,900), 'phone': (390,844)}

def browser():
    opt = webdriver.ChromeOptions()
    opt.binary_location = '/usr/bin/chromium'
    opt.set_capability('goog:loggingPrefs', {'browser': 'ALL'})
    for o in ('--headless', '--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-background-networking', '--disable-component-update', '--disable-sync', '--hide-scrollbars',
              f'--user-data-dir={tempfile.mkdtemp()}'): opt.add_argument(o)
    return webdriver.Chrome(options=opt, service=webdriver.ChromeService('/usr/bin/chromedriver'))

def resize(d, w, h):
    "Exactly `w` x `h`, also below the least width of a window"
    d.execute_cdp_cmd('Emulation.setDeviceMetricsOverride', dict(width=w, height=h, deviceScaleFactor=1, mobile=w<600))

def push(d, slider):
    "Pictures that a slider has shown, and how many positions it has"
    img = slider.find_element(By.XPATH, './ancestor::div[contains(@class,"animation")]').find_element(By.TAG_NAME, 'img')
    seen, n = {img.get_attribute('src')}, int(slider.get_attribute('max'))+1
    for _ in range(n-1):
        slider.send_keys(Keys.ARROW_RIGHT)
        seen.add(img.get_attribute('src'))
    return len(seen), n

def look(d, fn, shots):
    "What is wrong with the page `fn`"
    for name,(w,h) in sizes.items():
        resize(d, w, h)
        d.get(fn.as_uri()); time.sleep(.3)
        wide = d.execute_script('return document.documentElement.scrollWidth')
        if wide>w+1:
            who = d.execute_script("return [...document.querySelectorAll('body *')].filter(e => e.getBoundingClientRect().right>innerWidth+1 && !e.closest('pre,.cell-output-display,.output,div.sourceCode,table')).slice(0,3).map(e => e.tagName+'.'+e.className+' '+e.textContent.slice(0,60))")
            yield f'{name}: scrolls sideways, {wide} pixels: {who}'
        if gone := d.execute_script("return [...document.images].filter(i => i.src && !i.naturalWidth).map(i => i.src.slice(0,80))"): yield f'{name}: pictures missing: {gone}'
        if far := d.execute_script("return performance.getEntriesByType('resource').map(r => r.name).filter(n => n.startsWith('http'))"): yield f'{name}: fetched from elsewhere: {far[:3]}'
        for e in d.get_log('browser'):
            if e['level']=='SEVERE': yield f"{name}: {e['message'][:150]}"
        for k,s in enumerate(d.find_elements(By.CSS_SELECTOR, 'input.anim-slider')):
            got, n = push(d, s)
            if got<n or n<2: yield f'{name}: slider {k} has {n} positions and showed {got} pictures'
            else: print(f'  {fn.stem}, {name}: slider {k} showed {got} pictures')
        height = min(d.execute_script('return document.documentElement.scrollHeight'), 12000)
        resize(d, w, height)
        d.save_screenshot(str(shots/f'{fn.stem}_{name}.png'))

if __name__=='__main__':
    shots, wrong = Path(sys.argv[1]), []
    shots.mkdir(parents=True, exist_ok=True)
    pages = [p for p in sorted((root/'_check').glob('*.html')) if not sys.argv[2:] or p.stem in sys.argv[2:]]
    d = browser()
    try:
        for p in pages: wrong += [f'{p.stem}: {o}' for o in look(d, p, shots)]
    finally: d.quit()
    print(f'{len(pages)} pages at {len(sizes)} widths')
    sys.exit('\n'.join(wrong) or (None if pages else 'no pages in _check/'))
