# shellcheck shell=bash
# lib.sh: what the scripts beside it share.  Source it; it runs nothing.

tools=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck disable=SC2034	# for those who source this
top=$(cd "$tools/../.." && pwd)

say() { echo "${0##*/}: $*" >&2; }
die() { say "$*"; exit 1; }

# distro_major: the PostgreSQL version of this Debian release.
distro_major() {
	local id
	id=$(. /etc/os-release 2>/dev/null && echo "${VERSION_ID:-}") || true
	case $id in
		12) echo 15 ;;
		13) echo 17 ;;
		'') echo 18 ;;					# testing and sid carry no VERSION_ID
		*) echo 15 ;;
	esac
}

# find_pg_config: $PG_CONFIG if it is set; else this release's own version,
# else whatever is first on PATH.  Prints nothing when there is none.
find_pg_config() {
	local own
	own=/usr/lib/postgresql/$(distro_major)/bin/pg_config
	if [ -n "${PG_CONFIG:-}" ] && [ "$PG_CONFIG" != pg_config ]; then
		command -v "$PG_CONFIG" || true
	elif [ -x "$own" ]; then
		echo "$own"
	else
		command -v pg_config || true
	fi
}

# run_user: who runs servers and tests.  initdb and postgres refuse root.
run_user() { if [ "$(id -u)" = 0 ]; then echo postgres; else id -un; fi; }

# as COMMAND...: run it as that user.
as() { if [ "$(id -u)" = 0 ]; then runuser -u postgres -- "$@"; else "$@"; fi; }

# apt_as_root ARGUMENTS...: apt-get, tried twice; says something only when it
# fails.
apt_as_root() {
	local log run=(env DEBIAN_FRONTEND=noninteractive apt-get -qq
		-o DPkg::Lock::Timeout=600 -o Acquire::Retries=3)
	[ "$(id -u)" = 0 ] || run=(sudo -n "${run[@]}")
	log=$(mktemp)
	if "${run[@]}" "$@" >"$log" 2>&1 || { sleep 5; "${run[@]}" "$@" >"$log" 2>&1; }; then
		rm -f "$log"
	else
		tail -n 30 "$log" >&2
		rm -f "$log"
		return 1
	fi
}

# may_install: root, or sudo that asks nothing.
may_install() { [ "$(id -u)" = 0 ] || sudo -n true 2>/dev/null; }

# need_packages NAME...: install those that are missing; where that is not
# allowed, print the one line that does it and stop.
need_packages() {
	local p failed='' missing=()
	for p in "$@"; do
		case $(dpkg-query -W -f '${db:Status-Status}' "$p" 2>/dev/null) in
			installed) ;;
			*) missing+=("$p") ;;
		esac
	done
	[ ${#missing[@]} -gt 0 ] || return 0
	if ! command -v apt-get >/dev/null || ! may_install; then
		say "packages are missing and may not be installed from here; run"
		echo "apt-get install -y --no-install-recommends ${missing[*]}"
		exit 1
	fi
	say "installing ${missing[*]}"
	no_distro_cluster
	apt_as_root update || say "apt-get update failed, going on with the lists that are here"
	no_services begin
	apt_as_root install -y --no-install-recommends "${missing[@]}" </dev/null || failed=1
	no_services end
	[ -z "$failed" ] || die "could not install ${missing[*]}"
}

# no_services begin|end: in between, packages that are installed start no services,
# unless the machine has already decided about that.
no_services() {
	local policy=/usr/sbin/policy-rc.d mark='# while pg_swarm installs packages' sudo=()
	[ "$(id -u)" = 0 ] || sudo=(sudo -n)
	if [ "$1" = begin ] && [ ! -e $policy ]; then
		printf '#!/bin/sh\n%s\nexit 101\n' "$mark" | "${sudo[@]}" tee $policy >/dev/null
		"${sudo[@]}" chmod 755 $policy
	elif [ "$1" = end ] && grep -qxF "$mark" $policy 2>/dev/null; then
		"${sudo[@]}" rm -f $policy
	fi
}

# no_distro_cluster: keep postgresql-common from making and starting a cluster
# of its own, unless the machine has already decided about that.
no_distro_cluster() {
	local conf=/etc/postgresql-common/createcluster.conf sudo=()
	[ ! -e $conf ] || return 0
	[ "$(id -u)" = 0 ] || sudo=(sudo -n)
	"${sudo[@]}" mkdir -p "${conf%/*}"
	echo 'create_main_cluster = false' | "${sudo[@]}" tee $conf >/dev/null
}

# debian_mirror: where this machine gets Debian from.
debian_mirror() {
	local uri
	uri=$(cat /etc/apt/sources.list /etc/apt/sources.list.d/*.list \
		/etc/apt/sources.list.d/*.sources 2>/dev/null |
		sed -nE 's/^(URIs: *|deb (\[[^]]*\] *)?)(https?:[^ ]*\/debian)\/?( .*)?$/\3/p' |
		head -n 1)
	echo "${DEBIAN_MIRROR:-${uri:-http://deb.debian.org/debian}}"
}

# security_mirror: the same for Debian's security updates.
security_mirror() {
	local uri
	uri=$(cat /etc/apt/sources.list /etc/apt/sources.list.d/*.list \
		/etc/apt/sources.list.d/*.sources 2>/dev/null |
		sed -nE 's/^(URIs: *|deb (\[[^]]*\] *)?)(https?:[^ ]*\/debian-security)\/?( .*)?$/\3/p' |
		head -n 1)
	echo "${uri:-http://deb.debian.org/debian-security}"
}

# cache_dir: folders of the version matrix live here, between runs.
cache_dir() { echo "${PG_SWARM_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/pg_swarm-matrix}"; }
