package peers

// eximserver.go makes Exim a server: it takes mail by SMTP and stores it.

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// EximServerOptions says what an Exim takes. The zero value takes mail for any address of any
// domain, without TLS.
type EximServerOptions struct {
	// Addr is where it listens; default a free port of 127.0.0.1.
	Addr string

	// Hostname is in its greeting; default backend.test.
	Hostname string

	// CertFile and KeyFile, both PEM, turn on STARTTLS. The first has the whole chain.
	CertFile, KeyFile string

	// Conf holds further lines for the main part of its configuration.
	Conf []string
}

// EximServer is a running Exim that takes mail.
type EximServer struct {
	// Addr is where it speaks SMTP, and Hostname the name in its greeting.
	Addr, Hostname string

	// Startup is the time from the start of the process to its greeting.
	Startup time.Duration

	opt    EximServerOptions
	dir    string
	mail   maildir
	daemon *daemon
}

// Exim starts an Exim for the time of the test. It offers SIZE, 8BITMIME, PIPELINING, CHUNKING
// and, when told, STARTTLS, by GnuTLS. All mail goes to one maildir, which Wait reads. The
// methods may be used from several goroutines.
func Exim(t testing.TB, opt EximServerOptions) *EximServer {
	t.Helper()
	path := program(t, "exim4-daemon-light (the program alone, as install.sh does)", "exim4", cachedExim())
	needRoot(t, "Exim")
	if opt.Hostname == "" {
		opt.Hostname = "backend.test"
	}
	s := &EximServer{Hostname: opt.Hostname, opt: opt, dir: openDir(t, "exim")}
	s.mail = maildir{dir: filepath.Join(s.dir, "mail"), log: s.Log}
	exim := copyExim(t, path, s.dir)
	for _, name := range []string{"spool", "mail"} {
		makeDir(t, filepath.Join(s.dir, name), 0o755, mailUID)
	}
	environment := withEximAccount(t, s.dir)
	t.Cleanup(func() { s.end(t) }) // after openDir's, so it runs before that
	conf := filepath.Join(s.dir, "exim.conf")
	configure := func() probe {
		if s.Addr = opt.Addr; s.Addr == "" {
			s.Addr = highPort(t)
		}
		writeFile(t, conf, s.conf(t, exim))
		return greeting(s.Addr, s.Hostname)
	}
	// Exim starts itself again for deliveries, with the environment that it has; launch gives
	// none, so env does.
	args := append(append([]string{}, environment...), exim, "-C", conf, "-bdf")
	s.daemon, s.Startup = launch(t, "exim", s.dir, configure, "/usr/bin/env", args...)
	t.Logf("exim greets on %s after %v", s.Addr, s.Startup.Round(time.Millisecond))
	return s
}

// eximServerConf takes the host name, the directory, the program, the address, the port and further
// lines.
const eximServerConf = `
primary_hostname = %[1]s
spool_directory = %[2]s/spool
log_file_path = %[2]s/spool/log-%%s
exim_path = %[3]s
deliver_drop_privilege = true
keep_environment = LD_PRELOAD : NSS_WRAPPER_PASSWD : NSS_WRAPPER_GROUP
add_environment =
local_interfaces = %[4]s
daemon_smtp_ports = %[5]s
smtp_banner = $primary_hostname ESMTP
rfc1413_query_timeout = 0s
host_lookup =
log_selector = +tls_cipher +dkim_verbose
acl_smtp_rcpt = all
%[6]s
begin acl
all:
  accept
begin routers
all:
  driver = accept
  transport = store
begin transports
store:
  driver = appendfile
  maildir_format
  directory = %[2]s/mail
  create_directory
  user = Debian-exim
`

func (s *EximServer) conf(t testing.TB, exim string) string {
	t.Helper()
	host, port, err := net.SplitHostPort(s.Addr)
	if err != nil {
		t.Fatalf("peers: EximServerOptions.Addr: %v", err)
	}
	var more string
	for _, line := range s.opt.Conf {
		more += line + "\n"
	}
	if s.opt.CertFile != "" {
		more += fmt.Sprintf("tls_advertise_hosts = *\ntls_certificate = %s\ntls_privatekey = %s\n", s.readable(t, s.opt.CertFile), s.readable(t, s.opt.KeyFile))
	} else {
		more += "tls_advertise_hosts =\n"
	}
	return fmt.Sprintf(eximServerConf, s.Hostname, s.dir, exim, host, port, more)
}

// readable copies a file to where Exim's account may read it.
func (s *EximServer) readable(t testing.TB, file string) string {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatalf("peers: %v", err)
	}
	own := filepath.Join(s.dir, filepath.Base(file))
	err = os.WriteFile(own, b, 0o600)
	if err == nil {
		err = os.Chown(own, mailUID.uid, mailUID.gid)
	}
	if err != nil {
		t.Fatalf("peers: %v", err)
	}
	return own
}

// Wait waits until n messages or more have been stored, and returns all of them, oldest first,
// with LF line ends and Exim's trace fields on top. It ends the test when they do not come.
func (s *EximServer) Wait(t testing.TB, n int) [][]byte {
	t.Helper()
	return s.mail.wait(t, n)
}

// Log returns what Exim has logged so far, the first 16 MiB of it.
func (s *EximServer) Log() string {
	return string(readLimited(filepath.Join(s.dir, "spool", "log-main"), logLimit)) + serverLog(s.dir)
}

// end stops the server and shows its log if the test has failed.
func (s *EximServer) end(t testing.TB) {
	t.Helper()
	if s.daemon == nil {
		return
	}
	s.daemon.stop()
	if t.Failed() {
		t.Logf("end of exim's log:\n%s", tail(s.Log()))
	}
}
