package peers

// postfix.go starts Debian's Postfix from a configuration of its own. Its
// master process is started directly: `postfix start-fg` first checks and
// repairs a whole installation, for which a test has no time and no need.

import (
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// PostfixOptions says what a Postfix does. The zero value takes mail for any
// address of example.org, without TLS.
type PostfixOptions struct {
	// Domains are those it takes mail for; default example.org. It does not
	// relay to any other: RCPT is answered 554 5.7.1.
	Domains []string

	// Users are the full addresses that exist; RCPT to others of the same
	// domains is answered 550 5.1.1. Empty: all addresses exist.
	Users []string

	// Hostname is in the greeting and in Received fields; default backend.test.
	Hostname string

	// Addr is where it listens, an address of the loopback and a port; default a free port of
	// 127.0.0.1.
	Addr string

	// Certificate turns on STARTTLS. Nil: no TLS.
	Certificate *Certificate

	// ImplicitTLS opens a second port, where TLS starts at once (RFC 8314,
	// Section 3.3). It needs a Certificate.
	ImplicitTLS bool

	// SMTPDProxyTo is the host:port of a before-queue content filter, to which
	// the SMTP server passes each message before it answers. Nothing is
	// delivered by this Postfix then. Empty: none.
	SMTPDProxyTo string

	// Main holds further lines for main.cf; they win over ours.
	Main []string
}

// PostfixServer is a running Postfix.
type PostfixServer struct {
	// Addr is where it speaks SMTP. With TLSAddr the same
	// for implicit TLS, empty if that is off.
	Addr, TLSAddr string

	// Hostname is the name in its greeting.
	Hostname string

	// Startup is the time from the start of the process to its greeting.
	Startup time.Duration

	opt    PostfixOptions
	sends  bool // it has the services that send mail; see PostfixSender
	dir    string
	mail   maildir
	daemon *daemon
}

// The programs of Debian's package that are not on PATH.
const (
	postfixDaemons = "/usr/lib/postfix/sbin"
	postfixMaster  = postfixDaemons + "/master"
)

// Postfix starts a Postfix for the time of the test. It offers PIPELINING, SIZE,
// 8BITMIME, DSN, SMTPUTF8, CHUNKING, ENHANCEDSTATUSCODES and, when told, STARTTLS.
// All accepted mail goes to one maildir, which Wait and WaitFor read; it adds its
// trace fields and changes nothing else of a well-formed message (see AsSent).
// Bounces and other mail to foreign domains are discarded. The methods may be
// used from several goroutines.
func Postfix(t testing.TB, opt PostfixOptions) *PostfixServer {
	t.Helper()
	return startPostfix(t, opt, false)
}

func startPostfix(t testing.TB, opt PostfixOptions, sends bool) *PostfixServer {
	t.Helper()
	master := program(t, "postfix", "postfix master", postfixMaster)
	needRoot(t, "Postfix")
	if opt.ImplicitTLS && opt.Certificate == nil {
		t.Fatal("peers: PostfixOptions.ImplicitTLS needs a Certificate")
	}
	if len(opt.Domains) == 0 {
		opt.Domains = []string{"example.org"}
	}
	if opt.Hostname == "" {
		opt.Hostname = "backend.test"
	}
	s := &PostfixServer{Hostname: opt.Hostname, opt: opt, sends: sends, dir: openDir(t, "postfix")}
	s.mail = maildir{dir: filepath.Join(s.dir, "mail", "all"), log: s.Log}
	s.layOut(t)
	t.Cleanup(func() { s.end(t) }) // after openDir's, so it runs before that
	// The master opens all ports before it serves any, so the port that greets in clear
	// text speaks for the one with TLS.
	configure := func() probe {
		s.configure(t)
		return greeting(s.Addr, s.Hostname)
	}
	s.daemon, s.Startup = launch(t, "postfix", s.dir, configure, master, "-c", s.dir, "-d")
	t.Logf("postfix greets on %s after %v", s.Addr, s.Startup.Round(time.Millisecond))
	return s
}

// layOut makes the directories that Postfix expects, with the owners and modes
// its own installation gives them.
func (s *PostfixServer) layOut(t testing.TB) {
	t.Helper()
	owner := lookupAccount(t, "postfix", "")
	dropGroup := lookupAccount(t, "postfix", "postdrop").gid
	queue := filepath.Join(s.dir, "queue")
	makeDir(t, queue, 0o755, root)
	makeDir(t, filepath.Join(queue, "pid"), 0o755, root)
	for _, name := range []string{"active", "bounce", "corrupt", "defer", "deferred", "flush", "hold", "incoming", "private", "saved", "trace"} {
		makeDir(t, filepath.Join(queue, name), 0o700, owner)
	}
	makeDir(t, filepath.Join(queue, "maildrop"), 0o730, account{owner.uid, dropGroup})
	makeDir(t, filepath.Join(queue, "public"), 0o710, account{owner.uid, dropGroup})
	makeDir(t, filepath.Join(s.dir, "data"), 0o700, owner)
	makeDir(t, filepath.Join(s.dir, "mail"), 0o755, mailUID)
}

// configure takes ports and writes main.cf and master.cf for them.
func (s *PostfixServer) configure(t testing.TB) {
	t.Helper()
	if s.Addr = s.opt.Addr; s.Addr == "" {
		s.Addr = highPort(t)
	}
	if s.opt.ImplicitTLS {
		for s.TLSAddr = highPort(t); s.TLSAddr == s.Addr; {
			s.TLSAddr = highPort(t)
		}
	}
	writeFile(t, filepath.Join(s.dir, "main.cf"), s.mainCF(t))
	writeFile(t, filepath.Join(s.dir, "master.cf"), s.masterCF())
}

// mainCF returns main.cf. A later line wins over an earlier one.
func (s *PostfixServer) mainCF(t testing.TB) string {
	t.Helper()
	var b strings.Builder
	fmt.Fprintf(&b, `
compatibility_level = 3.6
queue_directory = %[1]s/queue
data_directory = %[1]s/data
daemon_directory = %[2]s
command_directory = /usr/sbin
mail_owner = postfix
setgid_group = postdrop
maillog_file = %[1]s/log
maillog_file_prefixes = %[1]s
myhostname = %[3]s
inet_interfaces = 127.0.0.1
inet_protocols = ipv4
smtpd_banner = $myhostname ESMTP
`, s.dir, postfixDaemons, s.Hostname)
	b.WriteString(postfixMail)
	if !s.sends {
		b.WriteString("default_transport = discard:mail to foreign domains ends here\n")
	}
	fmt.Fprintf(&b, "virtual_mailbox_domains = %s\n", strings.Join(s.opt.Domains, ", "))
	fmt.Fprintf(&b, "virtual_mailbox_base = %s/mail\n", s.dir)
	fmt.Fprintf(&b, "virtual_mailbox_maps = %s\n", s.mailboxes(t))
	fmt.Fprintf(&b, "virtual_uid_maps = static:%d\nvirtual_gid_maps = static:%d\n", mailUID.uid, mailUID.gid)
	if c := s.opt.Certificate; c != nil {
		fmt.Fprintf(&b, "smtpd_tls_security_level = may\nsmtpd_tls_cert_file = %s\nsmtpd_tls_key_file = %s\n", c.CertFile, c.KeyFile)
	}
	for _, line := range s.opt.Main {
		b.WriteString(line + "\n")
	}
	return b.String()
}

// postfixMail is the part of main.cf that is the same for all: take mail for our
// domains alone, change nothing in it, and look nothing up in the DNS.
const postfixMail = `
mydestination =
mynetworks =
relay_domains =
local_recipient_maps =
local_transport = error:no local mail
smtpd_relay_restrictions = reject_unauth_destination
smtpd_peername_lookup = no
notify_classes =
alias_maps =
alias_database =

local_header_rewrite_clients =
always_add_missing_headers = no
message_drop_headers =
disable_mime_input_processing = yes
disable_mime_output_conversion = yes
header_size_limit = 10485760
smtputf8_enable = yes
smtputf8_autodetect_classes = all

default_process_limit = 200
smtpd_client_connection_count_limit = 0
smtpd_error_sleep_time = 0
in_flow_delay = 0
`

// mailboxes returns the table of known users. All share one maildir.
func (s *PostfixServer) mailboxes(t testing.TB) string {
	t.Helper()
	if len(s.opt.Users) == 0 {
		return "static:all/"
	}
	var b strings.Builder
	for _, user := range s.opt.Users {
		fmt.Fprintf(&b, "%s all/\n", user)
	}
	path := filepath.Join(s.dir, "users")
	writeFile(t, path, b.String())
	return "texthash:" + path
}

// masterCF returns master.cf: only the services that a receiving host needs, and
// none of them in a chroot, which would need a copy of the system's libraries.
func (s *PostfixServer) masterCF() string {
	var b strings.Builder
	service := func(name, kind, private, wakeup, processes, command string) {
		fmt.Fprintf(&b, "%s %s %s - n %s %s %s\n", name, kind, private, wakeup, processes, command)
	}
	smtpd := "smtpd"
	if s.opt.SMTPDProxyTo != "" {
		smtpd += " -o smtpd_proxy_filter=" + s.opt.SMTPDProxyTo
	}
	if s.sends {
		smtpd += " -o mynetworks=127.0.0.0/8 -o smtpd_relay_restrictions=permit_mynetworks,reject -o smtpd_recipient_limit=100000"
	}
	service(s.Addr, "inet", "n", "-", "-", smtpd)
	if s.TLSAddr != "" {
		service(s.TLSAddr, "inet", "n", "-", "-", smtpd+" -o smtpd_tls_wrappermode=yes")
	}
	service("postlog", "unix-dgram", "n", "-", "1", "postlogd")
	service("cleanup", "unix", "n", "-", "0", "cleanup")
	service("qmgr", "unix", "n", "300", "1", "qmgr")
	service("tlsmgr", "unix", "-", "1000?", "1", "tlsmgr")
	service("rewrite", "unix", "-", "-", "-", "trivial-rewrite")
	for _, name := range []string{"bounce", "defer", "trace"} {
		service(name, "unix", "-", "-", "0", "bounce")
	}
	for _, name := range []string{"error", "retry"} {
		service(name, "unix", "-", "-", "-", "error")
	}
	service("discard", "unix", "-", "-", "-", "discard")
	service("proxymap", "unix", "-", "-", "-", "proxymap")
	service("anvil", "unix", "-", "-", "1", "anvil")
	if s.sends {
		service("smtp", "unix", "-", "-", "-", "smtp")
		service("lmtp", "unix", "-", "-", "-", "lmtp")
		service("scache", "unix", "-", "-", "1", "scache")
	}
	// The delivery agent runs as root, to write mail under another account.
	fmt.Fprint(&b, "virtual unix - n n - - virtual\n")
	return b.String()
}

// Wait waits until n messages or more have been delivered since the start, and
// returns all of them, oldest first, as they are stored: with LF line ends and
// Postfix's trace fields on top. It ends the test when they do not come.
func (s *PostfixServer) Wait(t testing.TB, n int) [][]byte {
	t.Helper()
	return s.mail.wait(t, n)
}

// WaitFor waits for a message that match accepts and returns it as Wait does. It
// ends the test when none comes.
func (s *PostfixServer) WaitFor(t testing.TB, match func(raw []byte) bool) []byte {
	t.Helper()
	return s.mail.waitFor(t, match)
}

// Log returns what Postfix has logged so far, the first 16 MiB of it. A line comes a
// little later than the reply that it is about; see WaitLog.
func (s *PostfixServer) Log() string {
	return serverLog(s.dir)
}

// WaitLog waits until the log has the text, and returns the log. It ends the test
// when the text does not come.
func (s *PostfixServer) WaitLog(t testing.TB, text string) string {
	t.Helper()
	return waitLog(t, s.Log, text)
}

// end stops the server and shows its log if the test has failed.
func (s *PostfixServer) end(t testing.TB) {
	t.Helper()
	if s.daemon != nil {
		s.daemon.stop()
	}
	if t.Failed() {
		t.Logf("end of postfix's log:\n%s", tail(s.Log()))
	}
}
