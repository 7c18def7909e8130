package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"
	"unicode"

	"github.com/spf13/cobra"

	"github.com/penstock/penstock/guest-sdk/abi"
	"github.com/penstock/penstock/mail/smtp"
	"github.com/penstock/penstock/policy"
	"github.com/penstock/penstock/policy/errand"
	"github.com/penstock/penstock/policy/guest"
	"github.com/penstock/penstock/wasmhost"
)

// filtertest.go: one filter, one message, no server.

type trial struct {
	config, ip, helo, from string
	user, password         string
	rcpts                  []string
	tls, out               bool
	deny                   []string
}

func newFilterTest() *cobra.Command {
	t := trial{}
	cmd := &cobra.Command{
		Use:   "test FILE.wasm MESSAGE.eml",
		Short: "Run a filter over a message and print what it says at each stage",
		Long: `Takes the filter through all stages of one session, as the gateway would, and prints each
answer with the changes it made. Exits 0 whatever the filter says, 1 if it fails.`,
		Example: `  gateway filter test greet.wasm sample.eml
  gateway filter test rcptguard.wasm mail.eml --config '{"blocked": ["spam.example"]}' --rcpt a@spam.example
  gateway filter test headertag.wasm mail.eml --show     print the message as it comes out
  gateway filter test login.wasm mail.eml --user alice --password made-up`,
		Args: rangeArgs(2, 2),
		RunE: func(cmd *cobra.Command, args []string) error {
			return t.run(cmd.Context(), args[0], args[1], cmd.OutOrStdout(), cmd.ErrOrStderr())
		},
	}
	f := cmd.Flags()
	f.StringVar(&t.config, "config", "{}", "the filter's configuration as `JSON`")
	f.StringVar(&t.ip, "ip", "192.0.2.1", "the client's `address`")
	f.StringVar(&t.helo, "helo", "client.example.org", "what the client calls itself")
	f.StringVar(&t.from, "from", "alice@example.org", "the sender; empty for the null sender")
	f.StringArrayVar(&t.rcpts, "rcpt", []string{"bob@example.com"}, "a recipient; may be given more than once")
	f.StringVar(&t.user, "user", "", "log in as that `name`, with PLAIN, before the mail")
	f.StringVar(&t.password, "password", "", "the `password` of the login, which the filter sees as with users: filter; others on this machine may see it too")
	f.StringSliceVar(&t.deny, "deny", nil, "a `capability` that is not granted, such as body_read; all others are. May be given more than once")
	f.BoolVar(&t.tls, "tls", false, "as over TLS 1.3")
	f.BoolVar(&t.out, "show", false, "print the message as it comes out")
	return cmd
}

func (t trial) run(ctx context.Context, file, eml string, stdout, stderr io.Writer) error {
	raw, err := readRegular(eml, 256<<20)
	if err != nil {
		return err
	}
	rt, module, err := loadFile(ctx, file, stderr)
	if err != nil {
		return err
	}
	defer rt.Close(ctx)
	grants, err := t.grants()
	if err != nil {
		return err
	}
	// It can keep values until the end. Nobody else is asked for a trial.
	outside := errand.New(errand.Options{Grants: grants, Values: new(errand.Memory)})
	defer outside.Close()
	f, err := module.Filter(ctx, wasmhost.FilterOptions{Config: []byte(t.config), Ready: -1, Grants: grants, Services: outside.Services()})
	if err != nil {
		return err
	}
	defer f.Close()
	s, tx, err := t.session()
	if err != nil {
		return err
	}
	var failure error
	run := policy.NewChain(policy.Link{Filter: f, MayAccept: grants.AcceptFinal}).Open(s, func(step policy.Step) {
		printStep(stdout, step)
		failure = errors.Join(failure, step.Err)
	})
	defer run.Close(ctx)
	t.walk(ctx, run, s, tx, withCRLF(raw))
	if t.out && tx.Message != nil {
		fmt.Fprintln(stdout)
		if _, err := tx.Message.WriteTo(stdout); err != nil {
			return err
		}
	}
	if failure != nil {
		return fmt.Errorf("%s failed; see above", filepath.Base(file))
	}
	return nil
}

// grants is everything but what the flags deny.
func (t trial) grants() (guest.Grants, error) {
	g := guest.Everything()
	for _, c := range t.deny {
		if !g.Deny(c) {
			return g, usageError{fmt.Errorf("--deny %s: want one of %s", c, strings.Join(abi.Capabilities(), ", "))}
		}
	}
	return g, nil
}

// session makes the facts of the flags.
func (t trial) session() (*policy.Session, *policy.Transaction, error) {
	addr, err := netip.ParseAddr(t.ip)
	if err != nil {
		return nil, nil, usageError{fmt.Errorf("--ip: %w", err)}
	}
	s := &policy.Session{ID: "test", Number: 1, Listener: "test", Remote: netip.AddrPortFrom(addr, 50000)}
	if t.tls {
		s.TLS = &policy.TLS{Version: tls.VersionTLS13, Cipher: tls.TLS_AES_128_GCM_SHA256}
	}
	tx := &policy.Transaction{Seq: 1}
	if t.from != "" {
		if tx.Sender.Path, err = smtp.ParseAddress(t.from); err != nil {
			return nil, nil, usageError{fmt.Errorf("--from: %w", err)}
		}
	}
	return s, tx, nil
}

// walk takes the stages in order until one refuses.
func (t trial) walk(ctx context.Context, run *policy.Run, s *policy.Session, tx *policy.Transaction, raw []byte) {
	refused := func(stage policy.Stage, tx *policy.Transaction) bool {
		v := run.Decide(ctx, stage, tx).Verdict
		return v.Final() && v.Action != policy.Discard
	}
	if refused(policy.StageConnect, nil) {
		return
	}
	if s.TLS != nil && refused(policy.StageSecure, nil) {
		return
	}
	s.Helo = t.helo
	if refused(policy.StageHelo, nil) || !t.login(ctx, run, s) || refused(policy.StageMail, tx) {
		return
	}
	for _, r := range t.rcpts {
		p, err := smtp.ParseAddress(r)
		if err != nil {
			fmt.Fprintf(os.Stderr, "--rcpt %s: %v\n", r, err)
			continue
		}
		tx.Rcpts = append(tx.Rcpts, policy.Recipient{Recipient: smtp.Recipient{Path: p}})
		if refused(policy.StageRcpt, tx) {
			tx.Rcpts = tx.Rcpts[:len(tx.Rcpts)-1]
		}
	}
	if len(tx.Rcpts) == 0 || refused(policy.StageData, tx) {
		return
	}
	m := policy.NewMessage(raw)
	tx.Message = &policy.Message{Header: m.Header}
	if refused(policy.StageHeaders, tx) {
		return
	}
	if chunksRefused(ctx, run, tx, m.Body) {
		return
	}
	tx.Message = &policy.Message{Header: tx.Message.Header, Body: m.Body}
	refused(policy.StageMessage, tx)
}

// chunksRefused shows the body piece by piece to a filter that wants that, and tells whether
// it refuses.
func chunksRefused(ctx context.Context, run *policy.Run, tx *policy.Transaction, body policy.Body) bool {
	buf := make([]byte, policy.MaxChunk)
	for off := int64(0); off < body.Size() && run.WantsChunks(); off += policy.MaxChunk {
		n, err := body.ReadAt(buf, off)
		if err != nil && err != io.EOF {
			return true // memory does not fail
		}
		if v := run.DecideChunk(ctx, tx, off, buf[:n]).Verdict; v.Final() && v.Action != policy.Discard {
			return true
		}
	}
	return false
}

// login asks about a login, if there is to be one, and tells whether the session goes on: who
// failed to log in may still send mail.
func (t trial) login(ctx context.Context, run *policy.Run, s *policy.Session) bool {
	if t.user == "" {
		return true
	}
	d := run.DecideAuth(ctx, &policy.Auth{Mechanism: "PLAIN", User: t.user, Password: t.password, Reveal: true})
	if d.Action == policy.Accept {
		s.User = t.user
	}
	return d.Action != policy.Disconnect
}

// withCRLF makes CRLF of the line ends of a file.
func withCRLF(b []byte) []byte {
	s := strings.ReplaceAll(string(b), "\r\n", "\n")
	return []byte(strings.ReplaceAll(s, "\n", "\r\n"))
}

// printStep prints one answer: stage, filter, verdict, and what it changed.
func printStep(w io.Writer, s policy.Step) {
	fmt.Fprintf(w, "  %-8s %-12s %-10s", s.Stage, s.Filter, s.Verdict.Action)
	if r := s.Verdict.Reply; r != nil {
		fmt.Fprintf(w, " %s", printable(r.Line()))
	}
	if s.Verdict.Reason != "" {
		fmt.Fprintf(w, " (%s)", printable(s.Verdict.Reason))
	}
	fmt.Fprintf(w, "  %v\n", s.Duration.Round(time.Microsecond))
	for _, e := range s.Edits {
		fmt.Fprintf(w, "  %-8s %-12s %s\n", "", "", printable(e.String()))
	}
	if s.Err != nil {
		fmt.Fprintf(w, "           failed: %s\n", strings.ReplaceAll(printableLines(s.Err.Error()), "\n", "\n           "))
	}
}

// printable makes a peer's text safe for a terminal.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return '?'
		}
		return r
	}, s)
}

func printableLines(s string) string {
	lines := strings.Split(s, "\n")
	for i := range lines {
		lines[i] = printable(strings.ReplaceAll(lines[i], "\t", "  "))
	}
	return strings.Join(lines, "\n")
}
