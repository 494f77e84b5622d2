"""Packaging for `pgflkd`. Every value comes from `settings.ini`: edit it there, not here."""
from configparser import ConfigParser
from pathlib import Path
from setuptools import find_packages, setup

root = Path(__file__).resolve().parent
parser = ConfigParser(delimiters=['='])
parser.read(root/'settings.ini', encoding='utf-8')
cfg = parser['DEFAULT']

statuses = ['1 - Planning', '2 - Pre-Alpha', '3 - Alpha', '4 - Beta', '5 - Production/Stable', '6 - Mature',
            '7 - Inactive']
licenses = {'apache2': 'Apache-2.0', 'mit': 'MIT', 'bsd3': 'BSD-3-Clause'}
minor = int(cfg['min_python'].split('.')[1])
readme = root/'README.md'
lib = cfg['lib_path']


def extras():
    "{extra: its packages}, from every key that ends in _requirements"
    named = {key.removesuffix('_requirements'): text for key, text in cfg.items() if key.endswith('_requirements')}
    return {name.replace('_', '-'): text.split() for name, text in named.items()}


setup(
    name=cfg['lib_name'],
    version=cfg['version'],
    description=cfg['description'],
    long_description=readme.read_text(encoding='utf-8') if readme.exists() else cfg['description'],
    long_description_content_type='text/markdown',
    author=cfg['author'],
    author_email=cfg['author_email'],
    url=cfg['git_url'],
    license=licenses[cfg['license']],
    keywords=cfg['keywords'],
    classifiers=[f"Development Status :: {statuses[int(cfg['status'])-1]}",
                 f"Intended Audience :: {cfg['audience'].title()}",
                 f"Natural Language :: {cfg['language'].title()}",
                 *(f'Programming Language :: Python :: 3.{m}' for m in range(minor, 14))],
    packages=find_packages(include=[lib, f'{lib}.*']),
    include_package_data=True,
    package_data={lib: ['weights/*', 'world/*.json']},
    python_requires=f">={cfg['min_python']}",
    install_requires=cfg['requirements'].split(),
    extras_require=extras(),
    entry_points={'console_scripts': cfg['console_scripts'].split(), 'nbdev': [f'{lib}={lib}._modidx:d']},
    zip_safe=False,
)
