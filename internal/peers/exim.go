package peers

// exim.go sends with Exim, the one mail server of Debian that sends messages in chunks
// (BDAT, RFC 3030). Its package cannot be installed beside Postfix's, so install.sh takes
// the program alone out of it. Exim looks for its account at each start; where the package
// is not installed there is none, and libnss_wrapper shows it one.

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// EximOptions says whom an Exim delivers to and how.
type EximOptions struct {
	// NextHop is the host:port of a loopback address that all mail goes to. Required.
	NextHop string

	// LMTP makes it speak LMTP instead of SMTP.
	LMTP bool

	// Hostname is what it says in EHLO; default client.test.
	Hostname string

	// Transport holds further lines for its smtp transport, such as
	// "hosts_require_tls = *" or "hosts_try_chunking =", which turns BDAT off.
	Transport []string
}

// EximDelivery is what an Exim logged about one recipient.
type EximDelivery struct {
	To      string
	Status  string // sent, bounced or deferred
	Chunked bool   // sent with BDAT
	Line    string // the rest of the line: router, transport, host, what the server said
}

// EximSend sends one message with Exim and returns what became of each recipient, in the
// order of the log. Exim tries once, with BDAT where CHUNKING is offered and all that it
// can pipelined, and keeps bounces to itself. It puts a Received field on top of the
// message, and Date, From and Message-Id where they are missing. It ends the test if Exim
// cannot be run, or runs longer than 30 s.
func EximSend(t testing.TB, opt EximOptions, from string, to []string, raw []byte) []EximDelivery {
	t.Helper()
	path := program(t, "exim4-daemon-light (the program alone, as install.sh does)", "exim4", cachedExim())
	needRoot(t, "Exim")
	dir := openDir(t, "exim")
	exim := copyExim(t, path, dir)
	makeDir(t, filepath.Join(dir, "spool"), 0o755, mailUID)
	conf := filepath.Join(dir, "exim.conf")
	writeFile(t, conf, opt.conf(t, dir, exim))

	ctx, cancel := context.WithTimeout(t.Context(), runLimit)
	defer cancel()
	cmd := command(ctx, exim, append([]string{"-C", conf, "-odf", "-i", "-f", from, "--"}, to...)...)
	cmd.Env = append(plainEnv(), withEximAccount(t, dir)...)
	cmd.Stdin = bytes.NewReader(raw)
	out, err := cmd.CombinedOutput()
	log := string(readLimited(filepath.Join(dir, "spool", "log-main"), logLimit))
	if err != nil {
		t.Fatalf("peers: exim %q: %v\n%s%s", to, err, out, tail(log))
	}
	t.Logf("exim's log:\n%s", tail(log))
	return eximDeliveries(log)
}

// cachedExim is where install.sh puts the program.
func cachedExim() string {
	cache, err := os.UserCacheDir()
	if err != nil {
		return "exim4" // there is no other place than PATH
	}
	return filepath.Join(cache, "penstock-test", "exim", "exim4")
}

// copyExim copies the program to where the mail account may start it, and makes it lose a
// setuid bit, with which it would not take its account from the environment.
func copyExim(t testing.TB, path, dir string) string {
	t.Helper()
	program, err := os.ReadFile(path)
	if err != nil {
		t.Fatalf("peers: %v", err)
	}
	exim := filepath.Join(dir, "exim4")
	if err := os.WriteFile(exim, program, 0o755); err != nil {
		t.Fatalf("peers: %v", err)
	}
	if err := os.Chmod(exim, 0o755); err != nil { // whatever the umask is
		t.Fatalf("peers: %v", err)
	}
	return exim
}

// withEximAccount returns the environment in which Debian-exim is the account that mail
// belongs to.
func withEximAccount(t testing.TB, dir string) []string {
	t.Helper()
	if found, _ := filepath.Glob("/usr/lib*/*/libnss_wrapper.so"); len(found) == 0 {
		Missing(t, "libnss_wrapper.so", "run `make test-deps`, or install Debian's package libnss-wrapper")
	}
	passwd, group := filepath.Join(dir, "passwd"), filepath.Join(dir, "group")
	writeFile(t, passwd, fmt.Sprintf("root:x:0:0::/:/bin/false\nDebian-exim:x:%d:%d::/:/bin/false\n", mailUID.uid, mailUID.gid))
	writeFile(t, group, fmt.Sprintf("root:x:0:\nDebian-exim:x:%d:\n", mailUID.gid))
	return []string{"LD_PRELOAD=libnss_wrapper.so", "NSS_WRAPPER_PASSWD=" + passwd, "NSS_WRAPPER_GROUP=" + group}
}

// eximConf takes the host name, the spool directory, the program, host and port, the
// protocol, the port again and further lines of the transport. The program is not setuid, so what it
// starts again for the delivery stays the mail account's. Bounces, the null sender's mail
// from that account, are thrown away.
const eximConf = `
primary_hostname = %s
spool_directory = %s
log_file_path = %s/log-%%s
exim_path = %s
deliver_drop_privilege = true
keep_environment = LD_PRELOAD : NSS_WRAPPER_PASSWD : NSS_WRAPPER_GROUP
add_environment =
log_selector = +smtp_confirmation
begin routers
bounces:
  driver = redirect
  senders = :
  condition = ${if eq{$sender_ident}{Debian-exim}}
  data = :blackhole:
all:
  driver = manualroute
  route_list = * %s::%s byname
  transport = out
  self = send
begin transports
out:
  driver = smtp
  allow_localhost
  protocol = %s
  port = %s
%s
begin retry
* * F,1d,1h
`

func (opt EximOptions) conf(t testing.TB, dir, exim string) string {
	t.Helper()
	host, port, err := net.SplitHostPort(opt.NextHop)
	if err != nil {
		t.Fatalf("peers: EximOptions.NextHop: %v", err)
	}
	hostname, protocol := opt.Hostname, "smtp"
	if hostname == "" {
		hostname = "client.test"
	}
	if opt.LMTP {
		protocol = "lmtp"
	}
	spool := filepath.Join(dir, "spool")
	// The service "lmtp", its own port for LMTP, is not in everybody's /etc/services, and it
	// looks that up even where the route has a port.
	return fmt.Sprintf(eximConf, hostname, spool, spool, exim, host, port, protocol, port, "  "+strings.Join(opt.Transport, "\n  "))
}

// Lines of the log. A message's first has its ID; one about a recipient has a mark that
// tells what became of it.
var (
	eximArrival  = regexp.MustCompile(`(?m)^\S+ \S+ (\S+) <= `)
	eximDelivery = regexp.MustCompile(`(?m)^\S+ \S+ (\S+) (=>|->|\*\*|==) (\S+) (.*)$`)
)

// eximDeliveries returns what the log says about the recipients of its first message; the
// others are bounces.
func eximDeliveries(log string) (found []EximDelivery) {
	status := map[string]string{"=>": "sent", "->": "sent", "**": "bounced", "==": "deferred"}
	id := eximArrival.FindStringSubmatch(log)
	for _, m := range eximDelivery.FindAllStringSubmatch(log, -1) {
		if id != nil && m[1] == id[1] {
			found = append(found, EximDelivery{To: m[3], Status: status[m[2]], Chunked: strings.Contains(m[4], " K "), Line: m[4]})
		}
	}
	return found
}
