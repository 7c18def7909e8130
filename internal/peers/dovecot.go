package peers

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// DovecotOptions says what a Dovecot does. The zero value takes mail for
// user@example.org.
type DovecotOptions struct {
	// Users are the full addresses that exist; default user@example.org. RCPT to
	// others is answered 550 5.1.1. Those of OverQuota and Failing exist too and
	// need not be repeated here.
	Users []string

	// OverQuota are users whose mailbox is full: RCPT is accepted, and the reply
	// after DATA is 552 5.2.2 for them alone.
	OverQuota []string

	// Failing are users whose mailbox cannot be written: RCPT is accepted, and
	// the reply after DATA is 451 4.2.0 for them alone.
	Failing []string

	// Conf holds further lines for dovecot.conf; they win over ours.
	Conf []string
}

// DovecotServer is a running Dovecot.
type DovecotServer struct {
	// Addr is where it speaks LMTP over TCP: 127.0.0.1 and a port. Socket is the
	// absolute path of a Unix socket for the same.
	Addr, Socket string

	// Hostname is the name in its greeting.
	Hostname string

	// Startup is the time from the start of the process to its greeting.
	Startup time.Duration

	opt    DovecotOptions
	dir    string
	daemon *daemon
}

const dovecotHostname = "lmtp.test"

// Dovecot starts a Dovecot that does nothing but LMTP (RFC 2033) for the time of
// the test. Each user has a maildir, which Wait and WaitFor read. The methods may
// be used from several goroutines.
func Dovecot(t testing.TB, opt DovecotOptions) *DovecotServer {
	t.Helper()
	path := program(t, "dovecot-lmtpd", "dovecot", "/usr/sbin/dovecot")
	program(t, "dovecot-lmtpd", "dovecot's lmtp", "/usr/lib/dovecot/lmtp")
	needRoot(t, "Dovecot")
	if len(opt.Users)+len(opt.OverQuota)+len(opt.Failing) == 0 {
		opt.Users = []string{"user@example.org"}
	}
	s := &DovecotServer{Hostname: dovecotHostname, opt: opt, dir: openDir(t, "dovecot")}
	s.Socket = filepath.Join(s.dir, "run", "lmtp")
	s.layOut(t)
	t.Cleanup(func() { s.end(t) }) // after openDir's, so it runs before that
	conf := filepath.Join(s.dir, "dovecot.conf")
	configure := func() probe {
		s.Addr = highPort(t)
		writeFile(t, conf, s.conf())
		return greeting(s.Addr, s.Hostname)
	}
	s.daemon, s.Startup = launch(t, "dovecot", s.dir, configure, path, "-F", "-c", conf)
	t.Logf("dovecot greets on %s after %v", s.Addr, s.Startup.Round(time.Millisecond))
	return s
}

// layOut makes the users' homes and the file that lists them.
func (s *DovecotServer) layOut(t testing.TB) {
	t.Helper()
	for _, name := range []string{"run", "state"} {
		makeDir(t, filepath.Join(s.dir, name), 0o755, root)
	}
	var users strings.Builder
	for _, user := range s.users() {
		owner := mailUID
		if slices.Contains(s.opt.Failing, user) {
			owner = root // and so not writable for those who deliver
		}
		makeDir(t, s.home(user), 0o755, owner)
		// name:password:uid:gid:gecos:home:shell:extra. No one logs in.
		fmt.Fprintf(&users, "%s:{PLAIN}*:%d:%d::%s::", user, mailUID.uid, mailUID.gid, s.home(user))
		if slices.Contains(s.opt.OverQuota, user) {
			users.WriteString("userdb_quota_rule=*:bytes=1")
		}
		users.WriteString("\n")
	}
	writeFile(t, filepath.Join(s.dir, "users"), users.String())
}

// users returns every user that exists, once.
func (s *DovecotServer) users() []string {
	users := slices.Concat(s.opt.Users, s.opt.OverQuota, s.opt.Failing)
	slices.Sort(users)
	return slices.Compact(users)
}

func (s *DovecotServer) home(user string) string {
	return filepath.Join(s.dir, "mail", user)
}

// conf returns dovecot.conf. A later line wins over an earlier one.
func (s *DovecotServer) conf() string {
	host, port, _ := strings.Cut(s.Addr, ":")
	conf := fmt.Sprintf(dovecotConf, s.dir, host, port, s.Hostname, mailUID.uid)
	return conf + strings.Join(s.opt.Conf, "\n") + "\n"
}

// dovecotConf takes the directory, the address, the port, the host name and the
// lowest account number that may own mail.
const dovecotConf = `
base_dir = %[1]s/run
state_dir = %[1]s/state
log_path = %[1]s/log
protocols = lmtp
ssl = no
hostname = %[4]s
login_greeting = %[4]s
mail_location = maildir:~/Maildir
mail_plugins = quota
first_valid_uid = %[5]d
first_valid_gid = %[5]d
lmtp_rcpt_check_quota = no
quota_full_tempfail = no
passdb {
  driver = passwd-file
  args = username_format=%%u %[1]s/users
}
userdb {
  driver = passwd-file
  args = username_format=%%u %[1]s/users
}
plugin {
  quota = count:User quota
  quota_vsizes = yes
  quota_grace = 0
}
service lmtp {
  inet_listener lmtp {
    address = %[2]s
    port = %[3]s
  }
  unix_listener lmtp {
    mode = 0666
  }
}
`

// Wait waits until n messages or more have been delivered to the user since the
// start, and returns all of them, oldest first, as they are stored: with LF line
// ends and Dovecot's trace fields on top (see AsSent). It ends the test when they
// do not come.
func (s *DovecotServer) Wait(t testing.TB, user string, n int) [][]byte {
	t.Helper()
	return s.mail(t, user).wait(t, n)
}

// WaitFor waits for a message to the user that match accepts and returns it as
// Wait does. It ends the test when none comes.
func (s *DovecotServer) WaitFor(t testing.TB, user string, match func(raw []byte) bool) []byte {
	t.Helper()
	return s.mail(t, user).waitFor(t, match)
}

func (s *DovecotServer) mail(t testing.TB, user string) maildir {
	t.Helper()
	if _, err := os.Stat(s.home(user)); err != nil {
		t.Fatalf("peers: dovecot has no user %s", user)
	}
	return maildir{dir: filepath.Join(s.home(user), "Maildir"), log: s.Log}
}

// Log returns what Dovecot has logged so far, the first 16 MiB of it. A line comes a
// little later than the reply that it is about; see WaitLog.
func (s *DovecotServer) Log() string {
	return serverLog(s.dir)
}

// WaitLog waits until the log has the text, and returns the log. It ends the test
// when the text does not come.
func (s *DovecotServer) WaitLog(t testing.TB, text string) string {
	t.Helper()
	return waitLog(t, s.Log, text)
}

// end stops the server and shows its log if the test has failed.
func (s *DovecotServer) end(t testing.TB) {
	t.Helper()
	if s.daemon == nil {
		return
	}
	if !t.Failed() {
		// Asked to stop, Dovecot takes a second. No one needs what it would save.
		s.daemon.kill()
		return
	}
	s.daemon.stop() // gives its log process the time to write
	t.Logf("end of dovecot's log:\n%s", tail(s.Log()))
}
