#!/usr/bin/env bash
# Runs a command in a copy of this checkout, with the newest Python of Debian and the newest zarr.
#
#   newest.sh COMMAND
#
# zarr-python 3.2 and later needs Python 3.12. The copy lies in a small Debian system, in the folder
# NEWEST, which is made once. The command may use $BIN, the programs of its environment, and what it
# writes to build/ comes back. PyTorch is left out. This needs Debian, root, and debootstrap.
set -euo pipefail
system=${NEWEST:-/var/tmp/spinezarr-newest}
checkout=$(cd "$(dirname "$0")/../.." && pwd)
if [ -z "${IN_NEWEST:-}" ]; then
  # Mounts in a namespace of their own end with the command, so no removal of a folder can follow them.
  IN_NEWEST=1 exec unshare --mount "$0" "$@"
fi
if [ ! -e "$system/made" ]; then
  mirror=$(awk '/^URIs/{print $2; exit}' /etc/apt/sources.list.d/*.sources)
  packages=python3,python3-venv,ca-certificates,gcc,libc6-dev,make,git
  debootstrap --variant=minbase --include="$packages" trixie "$system" "$mirror"
  touch "$system/made"
fi
for folder in proc sys dev opt; do mount --rbind "/$folder" "$system/$folder"; done
cp -r /etc/ssl /etc/hosts /etc/resolv.conf "$system/etc/"
# Pip must find its packages where it does outside.
for path in /etc/pip.conf /etc/xdg/pip "$HOME/.config/pip"; do
  if [ -e "$path" ]; then mkdir -p "$system$(dirname "$path")" && cp -r "$path" "$system$path"; fi
done
copy=$system/src/spinezarr
rm -rf "$copy" # files that the checkout no longer has must not stay
mkdir -p "$copy/build" "$system/src/shared/data"
if [ -d "$checkout/../shared/data" ]; then mount --bind "$checkout/../shared/data" "$system/src/shared/data"; fi
# The kernel is built for that system, so it must not be built in the checkout.
git -C "$checkout" ls-files -z | tar --directory "$checkout" --null --files-from - --create |
  tar --directory "$copy" --extract
run() { chroot "$system" env -u PYTHONDONTWRITEBYTECODE HOME=/root bash -euc "cd /src/spinezarr; export BIN=/venv/bin; $1"; }
# moto has many versions, through which pip would search if it were named together with the others.
run 'test -x $BIN/python || python3 -m venv /venv
$BIN/pip install --quiet --editable ".[all,neuroglancer,notebook]" blosc2 datasets highdicom hypothesis ipykernel nbclient ngff-zarr \
  obstore pcodec playwright pytest pytest-xdist safetensors schemathesis SimpleITK tensorstore zarrs
$BIN/pip install --quiet "moto[server]>=5.1" boto3
$BIN/python -c "import sys, zarr; print(\"Python\", sys.version.split()[0], \"zarr\", zarr.__version__)"'
trap 'mkdir -p "$checkout/build" && cp "$copy"/build/*.json "$checkout/build/" 2>/dev/null || true' EXIT
run "$*"
