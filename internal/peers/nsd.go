package peers

import (
	"context"
	"fmt"
	"net"
	"path/filepath"
	"strings"
	"syscall"
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

	opt    NSDOptions
	dir    string
	files  map[string]string // of the zones
	daemon *daemon
}

// nsdReady is a zone that tells our NSD from a stranger's that was quicker to take the
// port: its text is our directory.
const nsdReady = "ready.peers.invalid."

// NSD starts an NSD for the time of the test. It needs no root. The methods may be used
// from several goroutines.
func NSD(t testing.TB, opt NSDOptions) *NSDServer {
	t.Helper()
	path := program(t, "nsd", "nsd", "/usr/sbin/nsd")
	s := &NSDServer{opt: opt, dir: openDir(t, "nsd")}
	t.Cleanup(func() { s.end(t) }) // after openDir's, so it runs before that
	conf := filepath.Join(s.dir, "nsd.conf")
	zones := s.writeZones(t)
	configure := func() probe {
		if s.Addr = opt.Addr; s.Addr == "" {
			s.Addr = highPort(t)
		}
		host, port, _ := net.SplitHostPort(s.Addr)
		writeFile(t, conf, fmt.Sprintf(nsdConf, s.dir, host, port)+zones)
		return s.ready
	}
	s.daemon, s.Startup = launch(t, "nsd", s.dir, configure, path, "-d", "-c", conf)
	t.Logf("nsd answers on %s after %v", s.Addr, s.Startup.Round(time.Millisecond))
	return s
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

// writeZones writes the zone files and returns their part of the configuration.
func (s *NSDServer) writeZones(t testing.TB) string {
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
	for name, text := range s.opt.Zones {
		write(name, text)
	}
	return conf.String()
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

// Reload gives a zone another text, and waits until the zone has the serial number of that,
// which must be a new one.
func (s *NSDServer) Reload(t testing.TB, zone, text string) {
	t.Helper()
	want := serialOf(zone, text)
	writeFile(t, filepath.Join(s.dir, s.files[zone]), text)
	if err := s.daemon.cmd.Process.Signal(syscall.SIGHUP); err != nil {
		t.Fatalf("peers: signal nsd: %v", err)
	}
	err := s.daemon.await(func(deadline time.Time) error {
		ctx, cancel := context.WithDeadline(context.Background(), deadline)
		defer cancel()
		m := new(dns.Msg)
		m.SetQuestion(zone, dns.TypeSOA)
		reply, _, err := (&dns.Client{Net: "tcp"}).ExchangeContext(ctx, m, s.Addr)
		if err == nil && (len(reply.Answer) == 0 || !hasSerial(reply.Answer[0], want)) {
			err = fmt.Errorf("%s has not the serial number %d yet", zone, want)
		}
		return err
	})
	if err != nil {
		t.Fatalf("%v; log:\n%s", err, tail(s.Log()))
	}
}

func hasSerial(rr dns.RR, want uint32) bool {
	soa, ok := rr.(*dns.SOA)
	return ok && soa.Serial == want
}

// serialOf returns the serial number in the text of a zone.
func serialOf(zone, text string) uint32 {
	p := dns.NewZoneParser(strings.NewReader(text), zone, "")
	for rr, ok := p.Next(); ok; rr, ok = p.Next() {
		if soa, ok := rr.(*dns.SOA); ok {
			return soa.Serial
		}
	}
	return 0
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
