package peers

import (
	"context"
	"fmt"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"
)

// NSDOptions says which zones an NSD serves.
type NSDOptions struct {
	// Zones maps names of zones to their text, in the form of zone files. It may hold
	// parents and children.
	Zones map[string]string

	// Addr is where it answers; default a free port of 127.0.0.1.
	Addr string
}

// NSDServer is a running NSD, a name server that is authoritative for some zones.
type NSDServer struct {
	// Addr is where it answers over UDP and TCP.
	Addr string

	// Startup is the time from the start of the process to its first answer.
	Startup time.Duration

	path, dir string
	files     map[string]string // of the zones
	zones     string            // the part of the configuration about them
	daemon    *daemon
}

// nsdReady is a zone that tells our NSD from a stranger's that was quicker to take the
// port: its text is our directory.
const nsdReady = "ready.peers.invalid."

// NSD starts an NSD for the time of the test. It needs no root. The methods may be used
// from several goroutines.
func NSD(t testing.TB, opt NSDOptions) *NSDServer {
	t.Helper()
	s := &NSDServer{path: program(t, "nsd", "nsd", "/usr/sbin/nsd"), dir: openDir(t, "nsd")}
	t.Cleanup(func() { s.end(t) }) // after openDir's, so it runs before that
	s.writeZones(t, opt.Zones)
	s.start(t, opt.Addr)
	return s
}

// start starts the program at an address, or, if that is empty, at a free port.
func (s *NSDServer) start(t testing.TB, addr string) {
	t.Helper()
	conf := filepath.Join(s.dir, "nsd.conf")
	configure := func() probe {
		if s.Addr = addr; addr == "" {
			s.Addr = highPort(t)
		}
		host, port, _ := net.SplitHostPort(s.Addr)
		writeFile(t, conf, fmt.Sprintf(nsdConf, s.dir, host, port)+s.zones)
		return s.ready
	}
	s.daemon, s.Startup = launch(t, "nsd", s.dir, configure, s.path, "-d", "-c", conf)
	t.Logf("nsd answers on %s after %v", s.Addr, s.Startup.Round(time.Millisecond))
}

// nsdConf takes the directory, the address and the port. A test asks more often than NSD's
// limit on the rate of answers has in mind.
const nsdConf = `
remote-control:
  control-enable: no
server:
  zonesdir: "%[1]s"
  username: ""
  chroot: ""
  database: ""
  pidfile: ""
  xfrdfile: ""
  zonelistfile: "%[1]s/zones.list"
  xfrdir: "%[1]s"
  logfile: "%[1]s/log"
  ip-address: %[2]s
  port: %[3]s
  server-count: 1
  do-ip6: no
  rrl-ratelimit: 0
  rrl-whitelist-ratelimit: 0
`

// writeZones writes the zone files, and their part of the configuration.
func (s *NSDServer) writeZones(t testing.TB, zones map[string]string) {
	t.Helper()
	var conf strings.Builder
	s.files = make(map[string]string)
	write := func(name, text string) {
		file := fmt.Sprintf("%d.zone", len(s.files))
		s.files[name] = file
		writeFile(t, filepath.Join(s.dir, file), text)
		fmt.Fprintf(&conf, "zone:\n  name: \"%s\"\n  zonefile: \"%s\"\n", name, file)
	}
	write(nsdReady, fmt.Sprintf("%[1]s 60 IN SOA %[1]s %[1]s 1 60 60 60 60\n%[1]s 60 IN NS %[1]s\n%[1]s 60 IN TXT \"%[2]s\"\n", nsdReady, s.dir))
	for name, text := range zones {
		write(name, text)
	}
	s.zones = conf.String()
}

// ready asks for the name that only our NSD has.
func (s *NSDServer) ready(deadline time.Time) error {
	return knowsText(s.Addr, nsdReady, s.dir, deadline)
}

// knowsText asks a name server for the text of a name, and returns nil if it is that.
func knowsText(addr, name, text string, deadline time.Time) error {
	ctx, cancel := context.WithDeadline(context.Background(), deadline)
	defer cancel()
	m := new(dns.Msg)
	m.SetQuestion(name, dns.TypeTXT)
	reply, _, err := (&dns.Client{Net: "tcp"}).ExchangeContext(ctx, m, addr)
	if err != nil {
		return fmt.Errorf("ask %s: %w", addr, err)
	}
	if len(reply.Answer) != 1 || !strings.Contains(reply.Answer[0].String(), text) {
		return fmt.Errorf("%s is a stranger's: %v", addr, reply.Answer)
	}
	return nil
}

// Replace gives a zone another text. NSD is started anew for it, at the same address: while one
// that runs reads zones again it answers for a moment with the old ones and the new.
func (s *NSDServer) Replace(t testing.TB, zone, text string) {
	t.Helper()
	s.daemon.stop()
	writeFile(t, filepath.Join(s.dir, s.files[zone]), text)
	s.start(t, s.Addr)
}

// Log returns what NSD has logged so far, the first 16 MiB of it.
func (s *NSDServer) Log() string { return serverLog(s.dir) }

// end stops the server and shows its log if the test has failed.
func (s *NSDServer) end(t testing.TB) {
	t.Helper()
	if s.daemon == nil {
		return
	}
	s.daemon.stop()
	if t.Failed() {
		t.Logf("end of nsd's log:\n%s", tail(s.Log()))
	}
}
