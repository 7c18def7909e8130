package peers

import (
	"os"
	"os/user"
	"strconv"
	"syscall"
	"testing"
)

// account is a user and group of this machine.
type account struct{ uid, gid int }

var root = account{0, 0}

// mailUID owns delivered mail: Debian's nobody and nogroup. Postfix and Dovecot
// refuse to write mail as root, and the tests that read it are root.
var mailUID = account{65534, 65534}

// process makes a child run under the account, in a process group of its own.
func (a account) process() *syscall.SysProcAttr {
	attr := ownGroup()
	if a.uid != os.Getuid() {
		attr.Credential = &syscall.Credential{Uid: uint32(a.uid), Gid: uint32(a.gid)}
	}
	return attr
}

// lookupAccount finds a user with the named group, or else with its own group.
func lookupAccount(t testing.TB, name, group string) account {
	t.Helper()
	u, err := user.Lookup(name)
	if err != nil {
		t.Fatalf("peers: %v (the Debian package makes this account)", err)
	}
	gid := u.Gid
	if group != "" {
		g, err := user.LookupGroup(group)
		if err != nil {
			t.Fatalf("peers: %v (the Debian package makes this group)", err)
		}
		gid = g.Gid
	}
	return account{atoi(t, u.Uid), atoi(t, gid)}
}

func atoi(t testing.TB, s string) int {
	t.Helper()
	n, err := strconv.Atoi(s)
	if err != nil {
		t.Fatalf("peers: account number %q: %v", s, err)
	}
	return n
}
