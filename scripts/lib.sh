# Shared by the scripts of this folder: finds Go, enters the repository and sets what every go command here needs.
# It is sourced, never run.

cd "$(dirname "${BASH_SOURCE[0]}")/.."

if ! command -v go >/dev/null 2>&1; then
	PATH=$PATH:/usr/local/go/bin:/usr/lib/go/bin
fi
if ! command -v go >/dev/null 2>&1; then
	echo "go is not installed: see https://go.dev/doc/install" >&2
	exit 69
fi

# A checkout that belongs to another user has no readable version control data; no build here needs it.
export GOFLAGS="${GOFLAGS:+$GOFLAGS }-buildvcs=false"

GOFUMPT=mvdan.cc/gofumpt@v0.12.0
STATICCHECK=honnef.co/go/tools/cmd/staticcheck@v0.8.2

# as_root runs a command as root: directly, or by sudo.
as_root() {
	if [ "$(id -u)" -eq 0 ]; then
		"$@"
	elif command -v sudo >/dev/null 2>&1; then
		sudo "$@"
	else
		echo "need root or sudo for: $*" >&2
		return 1
	fi
}

# need_tools installs the Debian packages that the tests use and that are missing here: need_tools "COMMAND=PACKAGE..." ...
# No service is started: Debian would start its own Mosquitto on port 1883, so starting is forbidden while apt runs.
need_tools() {
	local pair missing=()
	for pair in "$@"; do
		if ! command -v "${pair%%=*}" >/dev/null 2>&1 && [ ! -x "/usr/sbin/${pair%%=*}" ]; then
			missing+=(${pair#*=}) # one word for each package
		fi
	done
	if [ ${#missing[@]} -eq 0 ]; then
		return 0
	fi
	if ! command -v apt-get >/dev/null 2>&1; then
		echo "please install: ${missing[*]} (no apt-get here)" >&2
		return 1
	fi
	echo "installing ${missing[*]}"
	local policy=/usr/sbin/policy-rc.d own=
	if [ ! -e $policy ]; then
		own=yes
		printf '#!/bin/sh\nexit 101\n' | as_root tee $policy >/dev/null
		as_root chmod 755 $policy
	fi
	local rc=0
	as_root apt-get update -qq &&
		as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" || rc=$?
	if [ -n "$own" ]; then
		as_root rm -f $policy
	fi
	return $rc
}

# The commands that the tests start, with the Debian packages they come from. The race detector needs a C compiler, and go
# needs certificates to fetch modules. Some tests mount a small file system of their own.
TEST_TOOLS=(mosquitto=mosquitto mosquitto_pub=mosquitto-clients strace=strace "gcc=gcc libc6-dev"
	update-ca-certificates=ca-certificates coap-client-notls=libcoap3-bin qemu-arm-static=qemu-user-static
	node=nodejs npm=npm python3=python3 mkfs.ext4=e2fsprogs mount=mount losetup=mount)
