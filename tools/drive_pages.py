"""Open the rendered pages in headless Chromium: python tools/drive_pages.py SCREENSHOTS/ [page ...]

Each page at desktop and phone width: does it scroll sideways, did a script fail, was anything fetched from elsewhere,
is every picture there, and does every slider change its picture? Says what is wrong, exit status 1. A page is named by
its folder and file, for example course_metrics. Needs selenium, chromium, chromium-driver, and the pages:
python tools/pages.py makes them."""
import sys
import tempfile
import time
from pathlib import Path

from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

PAGES = Path(__file__).resolve().parent.parent/'_check'
SIZES = {'desktop': (1200, 900), 'phone': (390, 844)}
FLAGS = ['--headless', '--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-sync',
         '--disable-background-networking', '--disable-component-update', '--hide-scrollbars']
WIDTH, HEIGHT = 'return document.documentElement.scrollWidth', 'return document.documentElement.scrollHeight'
OUTSIDE = """
const own = 'pre,.cell-output-display,.output,div.sourceCode,table';     // these scroll by themselves
return [...document.querySelectorAll('body *')]
  .filter(e => e.getBoundingClientRect().right > innerWidth+1 && !e.closest(own))
  .slice(0, 3).map(e => e.tagName + '.' + e.className + ' ' + e.textContent.slice(0, 60))"""
MISSING = 'return [...document.images].filter(i => i.src && !i.naturalWidth).map(i => i.src.slice(0, 80))'
FETCHED = "return performance.getEntriesByType('resource').map(r => r.name).filter(n => n.startsWith('http'))"


def browser():
    "A headless Chromium that keeps what scripts say"
    options = webdriver.ChromeOptions()
    options.binary_location = '/usr/bin/chromium'
    options.set_capability('goog:loggingPrefs', {'browser': 'ALL'})
    for flag in (*FLAGS, f'--user-data-dir={tempfile.mkdtemp()}'): options.add_argument(flag)
    return webdriver.Chrome(options=options, service=webdriver.ChromeService('/usr/bin/chromedriver'))


def name_of(path):
    "The page in the file `path` by folder and file, for example course_metrics"
    return '_'.join(path.relative_to(PAGES).with_suffix('').parts)


def resize(driver, w, h):
    "Exactly `w` x `h`, also below the least width of a window"
    size = dict(width=w, height=h, deviceScaleFactor=1, mobile=w<600)
    driver.execute_cdp_cmd('Emulation.setDeviceMetricsOverride', size)


def push(slider):
    "Pictures that a slider has shown, and how many positions it has"
    player = slider.find_element(By.XPATH, './ancestor::div[contains(@class,"animation")]')
    img = player.find_element(By.TAG_NAME, 'img')
    seen, n = {img.get_attribute('src')}, int(slider.get_attribute('max'))+1
    for _ in range(n-1):
        slider.send_keys(Keys.ARROW_RIGHT)
        seen.add(img.get_attribute('src'))
    return len(seen), n


def bad_page(driver, w):
    "What is wrong with the open page at the width `w`, sliders apart"
    wide = driver.execute_script(WIDTH)
    if wide>w+1: yield f'scrolls sideways, {wide} pixels: {driver.execute_script(OUTSIDE)}'
    if missing := driver.execute_script(MISSING): yield f'pictures missing: {missing}'
    if fetched := driver.execute_script(FETCHED): yield f'fetched from elsewhere: {fetched[:3]}'
    for entry in driver.get_log('browser'):
        if entry['level']=='SEVERE': yield entry['message'][:150]


def bad_sliders(driver, name):
    "What is wrong with the sliders of the open page; says of each good one what it showed"
    for k, slider in enumerate(driver.find_elements(By.CSS_SELECTOR, 'input.anim-slider')):
        shown, n = push(slider)
        if shown<n or n<2: yield f'slider {k} has {n} positions and showed {shown} pictures'
        else: print(f'  {name}: slider {k} showed {shown} pictures')


def look(driver, path, shots):
    "What is wrong with the page in the file `path`; leaves a screenshot of each width in `shots`"
    for at, (w, h) in SIZES.items():
        name = f'{name_of(path)}, {at}'
        resize(driver, w, h)
        driver.get(path.as_uri())
        time.sleep(.3)
        for what in (*bad_page(driver, w), *bad_sliders(driver, name)): yield f'{name}: {what}'
        resize(driver, w, min(driver.execute_script(HEIGHT), 12000))
        driver.save_screenshot(str(shots/f'{name_of(path)}_{at}.png'))


def main(shots, *names):
    "Look at the pages `names`, or at all; ends with what is wrong"
    shots = Path(shots)
    shots.mkdir(parents=True, exist_ok=True)
    paths = [path for path in sorted(PAGES.rglob('*.html')) if not names or name_of(path) in names]
    driver, wrong = browser(), []
    try:
        for path in paths: wrong += look(driver, path, shots)
    finally: driver.quit()
    print(f'{len(paths)} pages at {len(SIZES)} widths')
    sys.exit('\n'.join(wrong) or (None if paths else 'no such pages in _check/; python tools/pages.py makes them'))


if __name__=='__main__':
    if len(sys.argv)<2: sys.exit(__doc__)
    main(*sys.argv[1:])
