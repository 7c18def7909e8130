#!/bin/sh
# Installs what the tests need on a Debian machine that has Go: mail servers and
# clients, a resolver, a database and a CA to talk to, real messages, and a C compiler
# for WebAssembly filters.
# It may be run again at any time, and is quick when everything is there.
#
# Without root and sudo it only tells what to install, and succeeds: the tests
# that need more are skipped. Under CI it fails instead, as they do.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
policy=/usr/sbin/policy-rc.d

packages="postfix dovecot-core dovecot-lmtpd haproxy
	swaks libio-socket-ssl-perl libnet-ssleay-perl libauthen-sasl-perl
	unbound nsd
	postgresql
	spamassassin libpython3.11-testsuite
	libnss-wrapper libidn12
	gcc make clang lld openssl"

# give_up tells what is missing. It fails under CI alone.
give_up() {
	echo "install.sh: $1" >&2
	if [ -n "${CI:-}" ]; then
		exit 1
	fi
	echo "install.sh: going on without; the tests that need it are skipped" >&2
	exit 0
}

installed() {
	[ "$(dpkg-query -W -f '${db:Status-Status}' "$1" 2>/dev/null)" = installed ]
}

# missing prints those of its arguments that are not installed.
missing() {
	for package; do
		installed "$package" || printf ' %s' "$package"
	done
}

# Node and npm are taken from PATH when they are there. Debian's npm would bring
# hundreds of packages along, so without npm nodemailer comes from Debian too.
node_packages() {
	command -v node >/dev/null || printf ' nodejs'
	command -v npm >/dev/null || printf ' node-nodemailer'
}

# forbid_daemons keeps the packages from starting their servers: the tests start
# their own, and port 25 of this machine is not ours. A policy that is there
# already stays as it is.
forbid_daemons() {
	[ -e "$policy" ] && return
	trap '$sudo rm -f "$policy"' EXIT
	trap 'exit 1' HUP INT TERM
	printf '#!/bin/sh\nexit 101\n' | $sudo tee "$policy" >/dev/null
	$sudo chmod 755 "$policy"
}

install_packages() {
	command -v apt-get >/dev/null || give_up "this is not Debian; install the like of:$1"
	sudo=
	if [ "$(id -u)" != 0 ]; then
		command -v sudo >/dev/null || give_up "neither root nor sudo; as root, run: apt-get install --no-install-recommends$1"
		sudo=sudo
	fi
	forbid_daemons
	$sudo apt-get -q update || give_up "apt-get update failed"
	# shellcheck disable=SC2086 # the list is words
	$sudo env DEBIAN_FRONTEND=noninteractive apt-get -q -y --no-install-recommends install $1 ||
		give_up "apt-get install failed for:$1"
}

# install_nodemailer puts the pinned version where nodemailer.go looks for it, in
# the same steps and under the same lock.
install_nodemailer() {
	command -v npm >/dev/null || return 0
	cache=${XDG_CACHE_HOME:-$HOME/.cache}/penstock-test/nodemailer
	lock=$here/nodemailer/package-lock.json
	mkdir -p "$cache"
	exec 9>"$cache/lock"
	flock -w 60 9 || give_up "another installation of nodemailer does not end"
	if cmp -s "$lock" "$cache/installed.json" && [ -e "$cache/node_modules/nodemailer/package.json" ]; then
		return 0
	fi
	cp "$here/nodemailer/package.json" "$lock" "$cache/"
	npm ci --prefix "$cache" --ignore-scripts --no-audit --no-fund || give_up "npm cannot install nodemailer"
	cp "$lock" "$cache/installed.json"
}

# install_exim puts Exim's program where exim.go looks for it. Its package and Postfix's
# exclude each other, so the program is taken out of the package.
install_exim() {
	command -v apt-get >/dev/null || return 0
	cache=${XDG_CACHE_HOME:-$HOME/.cache}/penstock-test/exim
	[ -x "$cache/exim4" ] && return 0
	mkdir -p "$cache"
	unpacked=$(mktemp -d)
	(cd "$unpacked" && apt-get -q download exim4-daemon-light && dpkg -x exim4-daemon-light_*.deb .) ||
		give_up "cannot get the package exim4-daemon-light"
	# A copy is not setuid, and it is there whole or not at all.
	cp "$unpacked/usr/sbin/exim4" "$cache/exim4.new"
	chmod 755 "$cache/exim4.new"
	mv "$cache/exim4.new" "$cache/exim4"
	rm -r "$unpacked"
}

# install_pebble builds the CA where pebble.go looks for it, in the same steps, in the
# same version and under the same lock.
install_pebble() {
	command -v go >/dev/null || give_up "there is no go to build pebble with"
	version=v2.10.1
	cache=${XDG_CACHE_HOME:-$HOME/.cache}/penstock-test/pebble-$version
	mkdir -p "$cache"
	exec 8>"$cache/lock"
	flock -w 60 8 || give_up "another installation of pebble does not end"
	if [ -e "$cache/pebble" ]; then
		return 0
	fi
	for name in pebble-challtestsrv pebble; do
		(cd "$cache" && GOBIN=$cache go install "github.com/letsencrypt/pebble/v2/cmd/$name@$version") ||
			give_up "go cannot build $name"
	done
}

# shellcheck disable=SC2046,SC2086 # the lists are words
wanted=$(missing $packages $(node_packages))
if [ -n "$wanted" ]; then
	install_packages "$wanted"
fi
install_nodemailer
install_exim
install_pebble
