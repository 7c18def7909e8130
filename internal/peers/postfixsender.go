package peers

// postfixsender.go makes Postfix a client: it is given mail on a port of its own, and its
// smtp or lmtp client delivers that to a server of ours. What became of each recipient is
// read from its log.

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/textproto"
	"os/exec"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"
)

// PostfixSenderOptions says whom a Postfix delivers to and how.
type PostfixSenderOptions struct {
	// NextHop is the host:port of a loopback address that all mail goes to, whatever
	// its domain. Empty: mail goes where the MX records of its domain lead, as the resolver
	// of /etc/resolv.conf has them, and with TLS "dane" the records of DANE count.
	NextHop string

	// LMTP makes it speak LMTP instead of SMTP.
	LMTP bool

	// TLS is Postfix's security level: none, may, encrypt, verify, secure, dane or dane-only.
	// Default none. verify and secure need CA and ServerName.
	TLS string

	// ImplicitTLS starts TLS from the first byte; TLS has to be encrypt or more then.
	ImplicitTLS bool

	// CA is whom it trusts, ServerName the name that it asks for by SNI and that the
	// certificate has to be for.
	CA         *CA
	ServerName string

	// Certificate is its client certificate; nil: none.
	Certificate *Certificate

	// Hostname is what it says in EHLO and LHLO; default client.test.
	Hostname string

	// Main holds further lines for main.cf; they win over ours. Postfix splits mail to
	// more than 50 recipients, which for instance smtp_destination_recipient_limit
	// changes.
	Main []string
}

// PostfixMail is a message for a Postfix to send.
type PostfixMail struct {
	From string   // the reverse-path; "<>" for none; default sender@client.test
	To   []string // the forward-paths; default user@example.org

	// MailParams and RcptParams go with MAIL and with each RCPT, as in
	// "RET=HDRS ENVID=x1 SMTPUTF8" and "NOTIFY=SUCCESS,FAILURE". What the next hop
	// offers of it, Postfix says there too. BODY=8BITMIME is said where Raw needs it.
	MailParams, RcptParams string

	// Raw is the message, with CRLF or LF. Postfix puts a Received field on top and
	// changes nothing; see AsSent.
	Raw []byte
}

// PostfixDelivery is what a Postfix logged about one recipient.
type PostfixDelivery struct {
	To     string
	Relay  string // host[address]:port, or none
	Status string // sent, bounced or deferred
	DSN    string // the enhanced code, as 2.6.0
	Text   string // what the server said, or what went wrong
}

// PostfixSender is a running Postfix that sends.
type PostfixSender struct {
	server *PostfixServer
}

// NewPostfixSender starts a Postfix that delivers all mail to one address, for the time of
// the test. What is sent back to client.test, such as bounces, is discarded. A message
// that is deferred is not tried again within the time of a test. The methods may be used
// from several goroutines.
//
// This Postfix pipelines, and says SIZE, BODY=8BITMIME, SMTPUTF8, RET, ENVID, NOTIFY and ORCPT
// where they are offered, and XFORWARD where Main tells it to. It sends messages with DATA
// even where CHUNKING is offered: its client knows no BDAT. EximSend does.
func NewPostfixSender(t testing.TB, opt PostfixSenderOptions) *PostfixSender {
	t.Helper()
	if opt.Hostname == "" {
		opt.Hostname = "client.test"
	}
	main := append(opt.main(opt.transport(t)), opt.Main...)
	return &PostfixSender{startPostfix(t, PostfixOptions{Hostname: opt.Hostname, Domains: []string{"none.invalid"}, Main: main}, true)}
}

// transport returns the name of the client that sends, and where to.
func (opt PostfixSenderOptions) transport(t testing.TB) (client, transport string) {
	t.Helper()
	if opt.NextHop == "" {
		return "smtp", "smtp"
	}
	host, port, err := net.SplitHostPort(opt.NextHop)
	if err != nil {
		t.Fatalf("peers: PostfixSenderOptions.NextHop: %v", err)
	}
	if opt.LMTP {
		return "lmtp", fmt.Sprintf("lmtp:inet:[%s]:%s", host, port)
	}
	return "smtp", fmt.Sprintf("smtp:[%s]:%s", host, port)
}

// main returns the lines of main.cf that make it send.
func (opt PostfixSenderOptions) main(client, transport string) []string {
	lines := []string{
		"default_transport = " + transport,
		"transport_maps = inline:{ client.test=discard:mail_to_the_sender_ends_here }",
		// One failure must not keep the next message of a test from being tried.
		"default_destination_concurrency_failed_cohort_limit = 0",
		"message_size_limit = 0",
	}
	set := func(name, value string) {
		if value != "" {
			lines = append(lines, fmt.Sprintf("%s_%s = %s", client, name, value))
		}
	}
	if opt.NextHop == "" {
		set("dns_support_level", "dnssec")
		set("host_lookup", "dns")
	} else {
		set("dns_support_level", "disabled") // also keeps names in MAIL and RCPT as they are
		set("host_lookup", "native")
	}
	set("tls_security_level", opt.TLS)
	set("tls_loglevel", "1")
	set("line_length_limit", "0") // or it would fold long lines
	set("tls_servername", opt.ServerName)
	set("tls_verify_cert_match", opt.ServerName)
	set("tls_secure_cert_match", opt.ServerName)
	if opt.ImplicitTLS {
		set("tls_wrappermode", "yes")
	}
	if opt.CA != nil {
		set("tls_CAfile", opt.CA.File)
	}
	if c := opt.Certificate; c != nil {
		set("tls_cert_file", c.CertFile)
		set("tls_key_file", c.KeyFile)
	}
	return lines
}

// Send queues a message and waits until Postfix has logged what became of each recipient.
// It returns that in the order of mail.To. It ends the test when the log does not tell.
func (s *PostfixSender) Send(t testing.TB, mail PostfixMail) []PostfixDelivery {
	t.Helper()
	if len(mail.To) == 0 {
		mail.To = []string{"user@example.org"}
	}
	queueID, err := s.queue(mail)
	if err != nil {
		t.Fatalf("peers: queue a message with postfix: %v", err)
	}
	var found []PostfixDelivery
	waitLogUntil(t, s.Log, fmt.Sprintf("the delivery of %s to %d recipients", queueID, len(mail.To)), func(log string) bool {
		found = deliveries(log, queueID, mail.To)
		return len(found) == len(mail.To)
	})
	return found
}

// queue hands the message to Postfix by SMTP, which its sendmail command cannot do with
// all parameters, and returns the queue ID.
func (s *PostfixSender) queue(mail PostfixMail) (queueID string, err error) {
	conn, err := net.DialTimeout("tcp", s.server.Addr, runLimit)
	if err != nil {
		return "", err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(runLimit)); err != nil {
		return "", err
	}
	c := textproto.NewConn(conn)
	command := func(want int, format string, args ...any) (reply string) {
		if err == nil {
			err = c.PrintfLine(format, args...)
		}
		if err == nil {
			_, reply, err = c.ReadResponse(want)
		}
		return reply
	}
	if _, _, err := c.ReadResponse(220); err != nil {
		return "", err
	}
	command(250, "EHLO localhost")
	command(250, "MAIL FROM:<%s>%s", mail.reversePath(), mail.mailParams())
	for _, to := range mail.To {
		command(250, "RCPT TO:<%s>%s", to, params(mail.RcptParams))
	}
	command(354, "DATA")
	if err != nil {
		return "", err
	}
	w := c.DotWriter()
	if _, err := w.Write(mail.Raw); err != nil {
		return "", err
	}
	if err := w.Close(); err != nil {
		return "", err
	}
	_, reply, err := c.ReadResponse(250)
	if err != nil {
		return "", err
	}
	_, queueID, ok := strings.Cut(reply, "queued as ")
	if !ok {
		return "", fmt.Errorf("reply without a queue ID: %q", reply)
	}
	command(221, "QUIT")
	return queueID, err
}

func (m PostfixMail) reversePath() string {
	switch m.From {
	case "":
		return "sender@client.test"
	case "<>":
		return ""
	}
	return m.From
}

func (m PostfixMail) mailParams() string {
	said := m.MailParams
	eightBit := bytes.ContainsFunc(m.Raw, func(r rune) bool { return r >= 0x80 })
	if eightBit && !strings.Contains(said, "BODY=") {
		said += " BODY=8BITMIME"
	}
	return params(strings.TrimSpace(said))
}

// params puts a space in front of parameters, if there are any.
func params(said string) string {
	if said == "" {
		return ""
	}
	return " " + said
}

// deliveryLine is a line of the log about one recipient.
var deliveryLine = regexp.MustCompile(`: (\w+): to=<([^>]*)>,(?: orig_to=<[^>]*>,)? relay=(.*?), .*?dsn=([0-9.]+), status=(\w+) \((.*)\)$`)

// deliveries returns the first line of the log for each recipient that has one.
func deliveries(log, queueID string, to []string) []PostfixDelivery {
	byAddress := make(map[string]PostfixDelivery)
	for line := range strings.Lines(log) {
		if !strings.Contains(line, queueID) {
			continue // most lines of a long log, and cheaper than the expression
		}
		m := deliveryLine.FindStringSubmatch(strings.TrimSuffix(line, "\n"))
		if m == nil || m[1] != queueID {
			continue
		}
		if _, twice := byAddress[m[2]]; !twice {
			byAddress[m[2]] = PostfixDelivery{To: m[2], Relay: m[3], DSN: m[4], Status: m[5], Text: m[6]}
		}
	}
	var found []PostfixDelivery
	for _, address := range to {
		if d, ok := byAddress[address]; ok {
			found = append(found, d)
		}
	}
	return found
}

// Log returns what Postfix has logged so far, the first 16 MiB of it.
func (s *PostfixSender) Log() string { return s.server.Log() }

// WaitLog waits until the log has the text, and returns the log. It ends the test
// when the text does not come.
func (s *PostfixSender) WaitLog(t testing.TB, text string) string {
	t.Helper()
	return s.server.WaitLog(t, text)
}

// WaitLogFor waits until look accepts the log. It ends the test when it does not, and says
// what was waited for.
func (s *PostfixSender) WaitLogFor(t testing.TB, what string, look func(log string) bool) {
	t.Helper()
	waitLogUntil(t, s.Log, what, look)
}

// Retry has Postfix look at all that it has at once, whatever the time it was to wait: also
// at a message that it skipped because another of its processes still had it, which would
// else wait for minutes. Its queue manager opens the pipe that it is asked through anew now and
// then; who writes into it in that moment is told that it is broken, and asks again.
func (s *PostfixSender) Retry(t testing.TB) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), runLimit)
	defer cancel()
	for {
		// D: deferred, I: incoming, A: whatever their time.
		out, err := exec.CommandContext(ctx, "postkick", "-c", s.server.dir, "public", "qmgr", "DIA").CombinedOutput()
		if err == nil {
			return
		}
		if !endedBy(err, syscall.SIGPIPE) {
			t.Fatalf("peers: postkick: %v\n%s", err, out)
		}
	}
}

// endedBy tells whether a command was ended by the signal.
func endedBy(err error, sig syscall.Signal) bool {
	exit, ok := errors.AsType[*exec.ExitError](err)
	if !ok {
		return false
	}
	status, ok := exit.Sys().(syscall.WaitStatus)
	return ok && status.Signaled() && status.Signal() == sig
}

// Startup is the time from the start of the process until it served.
func (s *PostfixSender) Startup() time.Duration { return s.server.Startup }
