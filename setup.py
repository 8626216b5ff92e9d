"Packaging: every value comes from settings.ini, which nbdev reads as well."
from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup

ini = ConfigParser(delimiters=["="])
ini.read("settings.ini", encoding="utf-8")
cfg = ini["DEFAULT"]
lib = cfg["lib_name"]

logging = cfg["logging_requirements"].split()

setup(
    name=lib,
    version=cfg["version"],
    description=cfg["description"],
    long_description=Path("README.md").read_text(encoding="utf-8") if Path("README.md").exists() else "",
    long_description_content_type="text/markdown",
    author=cfg["author"],
    license="MIT",
    keywords=cfg["keywords"].split(),
    url=cfg["git_url"],
    python_requires=">=" + cfg["min_python"],
    packages=find_packages(include=[cfg["lib_path"], cfg["lib_path"] + ".*"]),
    package_data={cfg["lib_path"]: ["*.js", "*.css", "*.html", "*.json"]},
    install_requires=cfg["requirements"].split(),
    extras_require={"logging": logging, "dev": cfg["dev_requirements"].split() + logging},
    entry_points={
        "console_scripts": cfg["console_scripts"].split(),
        "nbdev": [f"{lib}={cfg['lib_path']}._modidx:d"],  # lets nbdev link names in prose to their documentation
    },
    zip_safe=False,
)
