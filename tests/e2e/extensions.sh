#!/bin/sh
# Unpacks Debian's PostgreSQL of the major version $1, with the extensions that are packaged for it, into the directory $2.
# Nothing is installed, so nobody need be root; what apt does not know is left out.
set -eu
major=$1 into=$2
known=
for package in "postgresql-$major-postgis-3" "postgresql-$major-postgis-3-scripts" "postgresql-$major-partman" \
    "postgresql-$major-cron" "postgresql-$major-hypopg" "postgresql-$major-repack" "postgresql-$major-pgvector" \
    "postgresql-plperl-$major"; do
    if apt-cache show "$package" > /dev/null 2>&1; then known="$known $package"; fi
done
new=$(mktemp -d "$into.XXXXXX")
trap 'rm -rf "$new"' EXIT
chmod 755 "$new"
mkdir "$new/packages" "$new/lib"
cd "$new/packages"
# shellcheck disable=SC2086
needed=$(apt-get install --simulate --no-install-recommends $known | awk '/^Inst/ { print $2 }')
# shellcheck disable=SC2086
apt-get --quiet=2 download "postgresql-$major" "postgresql-client-$major" $needed
for package in *.deb; do dpkg-deb --extract "$package" "$new"; done
cd "$new"
rm -r packages
# What the packages' scripts would link.
for control in "usr/share/postgresql/$major/extension/"*-3.control; do
    ln -s "${control##*/}" "${control%-3.control}.control"
done
find usr/lib -path usr/lib/postgresql -prune -o -name 'lib*.so*' -exec ln -srft lib {} +
mv -T "$new" "$into" || test -d "$into"
