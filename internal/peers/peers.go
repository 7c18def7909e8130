// Package peers starts real mail software for a test: Postfix as an SMTP backend,
// as a before-queue proxy or as a client, Exim as a client that sends in chunks,
// Dovecot as an LMTP backend, HAProxy in front of a server, Unbound as a resolver
// that validates, PostgreSQL as a database, and swaks, nodemailer and openssl as clients.
//
// Our own two ends agree with each other even where both are wrong, so some
// tests must talk to software that other people wrote. A function here gives
// such a peer to one test:
//
//	backend := peers.Postfix(t, peers.PostfixOptions{Domains: []string{"example.org"}})
//	... send something to backend.Addr ...
//	for _, raw := range backend.Wait(t, 1) { ... }
//
// Every peer has its own configuration, queue and mail in a fresh directory, and
// listens on free ports of 127.0.0.1; the machine's own /etc/postfix and
// /etc/dovecot are neither read nor written. It is stopped, and its directory
// removed, when the test ends. When the test has failed, the end of the peer's
// log goes to the test's output. Every start, wait and run has a time limit.
//
// A missing program skips the test and tells how to get it. Under CI (the
// environment variable CI is not empty) it fails the test instead, so that a
// broken image cannot turn the tests off. The script install.sh beside this file
// installs all of them on a Debian machine; `make test-deps` calls it. Postfix and
// Dovecot need root, because their master processes start children under several
// accounts.
//
// Functions that take a testing.TB must be called from the test's own goroutine,
// as they may call its FailNow. What they return may be used from several
// goroutines at the same time, but for the methods that take a testing.TB.
package peers

import (
	"os"
	"os/exec"
	"testing"
)

// Missing skips the test, or fails it under CI, because what is not there. The
// text how tells how to get it.
func Missing(t testing.TB, what, how string) {
	t.Helper()
	if os.Getenv("CI") != "" {
		t.Fatalf("%s is missing, and CI is set: %s", what, how)
	}
	t.Skipf("%s is missing: %s", what, how)
}

// program finds a program on PATH, or in one of the absolute places given, as
// /usr/sbin is not on every account's PATH. It ends the test if there is none.
func program(t testing.TB, debianPackage, name string, places ...string) string {
	t.Helper()
	if path, err := exec.LookPath(name); err == nil {
		return path
	}
	for _, place := range places {
		if path, err := exec.LookPath(place); err == nil {
			return path
		}
	}
	Missing(t, name, "run `make test-deps`, or install Debian's package "+debianPackage)
	return ""
}

// needRoot ends the test if it does not run as root.
func needRoot(t testing.TB, who string) {
	t.Helper()
	if os.Geteuid() != 0 {
		Missing(t, "root", who+" starts children under several accounts; run the tests as root")
	}
}
