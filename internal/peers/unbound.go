package peers

import (
	"fmt"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// UnboundOptions says what an Unbound knows. The zero value knows nothing: it refuses
// every question, and asks nobody outside of this machine.
type UnboundOptions struct {
	// Data are records that it answers with itself, in the form of a zone file. They
	// are never authenticated.
	Data []string

	// Zones maps zones to the authoritative server for each, an address and port of the
	// loopback. Questions outside of them stay on this machine: they are refused, or
	// asked of the server of the zone ".".
	Zones map[string]string

	// Anchors are DS or DNSKEY records, in the form of a zone file. A zone with one is
	// validated; others are insecure.
	Anchors []string

	// Addr is where it answers; default a free port of 127.0.0.1.
	Addr string

	// Conf holds further lines for the server section of unbound.conf.
	Conf []string
}

// UnboundServer is a running Unbound, a resolver that validates.
type UnboundServer struct {
	// Addr is where it answers over UDP and TCP: 127.0.0.1 and a port.
	Addr string

	// Startup is the time from the start of the process to its first answer.
	Startup time.Duration

	opt    UnboundOptions
	dir    string
	daemon *daemon
}

// unboundReady is a name that tells our Unbound from a stranger's that was quicker to take
// the port: its text is our directory.
const unboundReady = "ready.peers.invalid."

// Unbound starts an Unbound for the time of the test. It needs no root. The methods may
// be used from several goroutines.
func Unbound(t testing.TB, opt UnboundOptions) *UnboundServer {
	t.Helper()
	path := program(t, "unbound", "unbound", "/usr/sbin/unbound")
	s := &UnboundServer{opt: opt, dir: openDir(t, "unbound")}
	t.Cleanup(func() { s.end(t) }) // after openDir's, so it runs before that
	conf := filepath.Join(s.dir, "unbound.conf")
	configure := func() probe {
		if s.Addr = opt.Addr; s.Addr == "" {
			s.Addr = highPort(t)
		}
		writeFile(t, conf, s.conf())
		return s.ready
	}
	s.daemon, s.Startup = launch(t, "unbound", s.dir, configure, path, "-d", "-d", "-c", conf)
	t.Logf("unbound answers on %s after %v", s.Addr, s.Startup.Round(time.Millisecond))
	return s
}

// ready asks for the name that only our Unbound has.
func (s *UnboundServer) ready(deadline time.Time) error {
	return knowsText(s.Addr, unboundReady, s.dir, deadline)
}

// conf returns unbound.conf.
func (s *UnboundServer) conf() string {
	host, port, _ := net.SplitHostPort(s.Addr)
	var b strings.Builder
	fmt.Fprintf(&b, unboundConf, s.dir, host, port)
	line := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	if _, ok := s.opt.Zones["."]; !ok {
		line(`  local-zone: "." refuse`)
	}
	line(`  local-data: '%s TXT "%s"'`, unboundReady, s.dir)
	for _, rr := range s.opt.Data {
		line("  local-data: '%s'", rr)
	}
	for _, rr := range s.opt.Anchors {
		line(`  trust-anchor: "%s"`, rr)
	}
	for zone := range s.opt.Zones {
		line(`  local-zone: "%s" transparent`, zone)
	}
	line("  %s", strings.Join(s.opt.Conf, "\n  "))
	for zone, addr := range s.opt.Zones {
		line("stub-zone:\n  name: \"%s\"\n  stub-addr: %s", zone, strings.Replace(addr, ":", "@", 1))
	}
	return b.String()
}

// unboundConf takes the directory, the address and the port.
const unboundConf = `
remote-control:
  control-enable: no
server:
  directory: "%[1]s"
  username: ""
  chroot: ""
  pidfile: ""
  use-syslog: no
  logfile: "%[1]s/log"
  verbosity: 1
  val-log-level: 2
  num-threads: 1
  interface: %[2]s
  port: %[3]s
  do-ip6: no
  do-not-query-localhost: no
  module-config: "validator iterator"
  ede: yes
`

// Log returns what Unbound has logged so far, the first 16 MiB of it.
func (s *UnboundServer) Log() string {
	return serverLog(s.dir)
}

// end stops the server and shows its log if the test has failed.
func (s *UnboundServer) end(t testing.TB) {
	t.Helper()
	if s.daemon == nil {
		return
	}
	s.daemon.stop()
	if t.Failed() {
		t.Logf("end of unbound's log:\n%s", tail(s.Log()))
	}
}
