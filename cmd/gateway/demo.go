package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/penstock/penstock"
	"github.com/penstock/penstock/certs"
	"github.com/penstock/penstock/delivery"
	"github.com/penstock/penstock/filters"
	"github.com/penstock/penstock/gateway"
	"github.com/penstock/penstock/mail/smtp"
	"github.com/penstock/penstock/policy"
	"github.com/penstock/penstock/policy/guest"
	"github.com/penstock/penstock/wasmhost"
)

// demo.go: everything on loopback in one process: clients, the gateway with TLS and four
// filters, and a backend that keeps mail in a folder.

func newDemo() *cobra.Command {
	d := &demo{}
	cmd := &cobra.Command{
		Use:   "demo",
		Short: "See it work on this machine: nothing to set up, nothing but Go needed",
		Long: `Starts a small backend, the gateway with TLS and its four filters, sends real messages
through, and prints who said what at each stage. Then it stays up until Ctrl-C, and shows
what happens to mail that you send. Everything listens on 127.0.0.1 only.`,
		Example: `  gateway demo
  gateway demo --once        end after the messages`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			d.out = cmd.OutOrStdout()
			return d.run(cmd.Context())
		},
	}
	cmd.Flags().BoolVar(&d.once, "once", false, "end after the messages")
	cmd.Flags().StringVar(&d.address, "listen", "", "where the gateway listens (default 127.0.0.1:2525, or a free port if that is taken)")
	cmd.Flags().StringVar(&d.dir, "dir", "", "keep the delivered mail in `DIR` (default: a temporary folder, removed at the end)")
	return cmd
}

type demo struct {
	once    bool
	address string
	dir     string

	mu  sync.Mutex // guards out: sessions print too
	out io.Writer

	roots *x509.CertPool
	gw    *gateway.Gateway
	level slog.LevelVar // the gateway's own log, of interest once others send mail
}

// Write implements io.Writer for the log.
func (d *demo) Write(p []byte) (int, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.out.Write(p)
}

const demoHost = "localhost"

func (d *demo) printf(format string, args ...any) {
	d.mu.Lock()
	defer d.mu.Unlock()
	fmt.Fprintf(d.out, format, args...)
}

func (d *demo) run(ctx context.Context) (err error) {
	if d.dir == "" {
		if d.dir, err = os.MkdirTemp("", "penstock-demo-*"); err != nil {
			return err
		}
		defer os.RemoveAll(d.dir)
	} else if err = os.MkdirAll(d.dir, 0o755); err != nil {
		return err
	}
	backend, backendAddr, err := startMaildrop(d.dir)
	if err != nil {
		return err
	}
	defer shutdown(backend.Shutdown)

	cache, err := demoCache()
	if err != nil {
		return err
	}
	rt, err := newRuntime(ctx, wasmhost.Options{CacheDir: filepath.Join(cache, "compiled")})
	if err != nil {
		return err
	}
	defer rt.Close(context.WithoutCancel(ctx))
	d.printf("Starting four filters, each a WebAssembly module in a sandbox of its own:\n")
	chain, closeChain, err := d.chain(ctx, rt, cache)
	if err != nil {
		return err
	}
	store, err := certs.New(certs.Options{Hostname: demoHost})
	if err != nil {
		return err
	}
	d.roots = store.DefaultPool()
	transport, err := delivery.New(delivery.Options{LocalName: demoHost, Backends: map[string]delivery.BackendOptions{
		"maildrop": {Groups: [][]delivery.Endpoint{{{Network: "tcp", Address: backendAddr}}}},
	}})
	if err != nil {
		return err
	}
	defer shutdown(transport.Shutdown)
	err = d.listen(store.ServerConfig(), transport, gateway.Rules{
		Routes:  []gateway.Route{{Domains: []string{"example.com"}, Backend: "maildrop"}},
		Chains:  map[string]*policy.Chain{"demo": chain},
		Release: closeChain,
	})
	if err != nil {
		return err
	}
	served := make(chan error, 1)
	go func() { served <- d.gw.Serve() }()
	defer func() {
		shutdown(d.gw.Shutdown)
		err = errors.Join(err, <-served)
	}()
	d.printf("\nThe gateway listens on %s with STARTTLS; behind it is a backend on %s\nthat keeps its mail in %s\n", d.gw.Addr("demo"), backendAddr, d.dir)
	if err := d.sendAll(ctx); err != nil {
		return err
	}
	if d.once {
		return nil
	}
	d.invite()
	<-ctx.Done()
	d.printf("\nStopping.\n")
	return nil
}

// shutdown ends a part within a few seconds.
func shutdown(f func(context.Context) error) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	_ = f(ctx) // the demo ends either way
}

// listen opens the gateway where it was told to, else at the usual port, or at a free one
// if that is taken.
func (d *demo) listen(tlsConfig *tls.Config, transport *delivery.Transport, rules gateway.Rules) error {
	d.level.Set(slog.LevelError)
	log := slog.New(slog.NewTextHandler(d, &slog.HandlerOptions{Level: &d.level}))
	open := func(address string) (err error) {
		d.gw, err = gateway.New(gateway.Options{
			Hostname: demoHost, TLS: tlsConfig, Relay: transportRelay{transport}, Observe: d.observe, Log: log,
			Listeners: []gateway.Listener{{Name: "demo", Addresses: []gateway.Address{{Network: "tcp", Address: address}}, Chain: "demo"}},
		}, rules)
		if err != nil {
			return err
		}
		return d.gw.Listen()
	}
	if d.address != "" {
		return open(d.address)
	}
	err := open("127.0.0.1:2525")
	if errors.Is(err, syscall.EADDRINUSE) {
		err = open("127.0.0.1:0")
	}
	return err
}

// demoFilters is the chain of the demo.
var demoFilters = []struct {
	name, config, about string
	grants              guest.Grants
}{
	{"helocheck", `{"our_names": ["localhost"]}`, "refuses clients that call themselves by our name", guest.Grants{}},
	{"rcptguard", `{"blocked": ["nobody@example.com"]}`, "refuses recipients on a list", guest.Grants{}},
	{"headertag", `{"rules": [{"add": "X-Scanned-By", "value": "Penstock demo"}]}`, "adds a header field", guest.Grants{}},
	{"bodymatch", `{"rules": [{"name": "lottery", "texts": ["lottery winner"], "reply": "no lotteries, please"}]}`, "may read bodies, and refuses some by their words", guest.Grants{BodyRead: true}},
}

func (d *demo) chain(ctx context.Context, rt *wasmhost.Runtime, cache string) (*policy.Chain, func(), error) {
	set := newChainSet(nil, nil)
	var links []policy.Link
	for _, df := range demoFilters {
		start := time.Now()
		wasm, err := demoModule(ctx, df.name, cache, d.printf)
		if err != nil {
			return nil, nil, err
		}
		f, err := set.boot(ctx, rt, wasm, df.name, wasmhost.FilterOptions{Config: []byte(df.config), Grants: df.grants})
		if err != nil {
			set.close()
			return nil, nil, err
		}
		links = append(links, policy.Link{Filter: f.value})
		d.printf("  %-10s %-48s %4d KiB, ready in %v\n", df.name, df.about, len(wasm)>>10, time.Since(start).Round(time.Millisecond))
	}
	return policy.NewChain(links...), set.close, nil
}

// demoCache is a folder of this user for what need not be made twice.
func demoCache() (string, error) {
	base, err := os.UserCacheDir()
	if err != nil {
		base = os.TempDir()
	}
	dir := filepath.Join(base, "penstock", "demo")
	return dir, os.MkdirAll(dir, 0o700)
}

// demoModule returns a builtin filter, compiled from source if this program was built
// without: so that the demo works on a fresh clone.
func demoModule(ctx context.Context, name, cache string, say func(string, ...any)) ([]byte, error) {
	if wasm, ok := filters.Builtin(name); ok {
		return wasm, nil
	}
	list := exec.CommandContext(ctx, "go", "list", "-f", "{{.Dir}}", penstock.Module+"/filters/"+name)
	dir, err := list.Output()
	if err != nil {
		return nil, fmt.Errorf("this program was built without its filters, and their sources are not here: run make filters, or the demo from a clone (%w)", err)
	}
	say("  %-10s compiling from source …\n", name)
	out := filepath.Join(cache, name+".wasm")
	if err := compileGuest(ctx, string(dir[:len(dir)-1]), out, nil, os.Stderr); err != nil {
		return nil, err
	}
	return os.ReadFile(out)
}

// observe prints what a filter said.
func (d *demo) observe(_ *policy.Session, s policy.Step) {
	d.mu.Lock()
	defer d.mu.Unlock()
	printStep(d.out, s)
}

// letter is one message of the demo.
type letter struct {
	title          string
	helo, from, to string
	body           string
}

var letters = []letter{
	{"An ordinary message", "mail.example.org", "alice@example.org", "bob@example.com",
		"Subject: Lunch\r\n\r\nDear Bob,\r\nlunch at noon?\r\n.. a line with dots\r\n"},
	{"A message in UTF-8, to an address in UTF-8", "mail.example.org", "alice@example.org", "jürgen@example.com",
		"Subject: Grüße\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Transfer-Encoding: 8bit\r\n\r\nSchöne Grüße!\r\n"},
	{"A recipient on rcptguard's list", "mail.example.org", "alice@example.org", "nobody@example.com",
		"Subject: Hello\r\n\r\nIs anybody there?\r\n"},
	{"Words that bodymatch does not like", "mail.example.org", "prize@example.net", "bob@example.com",
		"Subject: Congratulations\r\n\r\nYou are our LOTTERY WINNER of the day.\r\n"},
	{"A client that claims to be us", demoHost, "alice@example.org", "bob@example.com",
		"Subject: Hello\r\n\r\nIt is me, yourself.\r\n"},
	{"A domain that is not ours", "mail.example.org", "alice@example.org", "carol@elsewhere.example",
		"Subject: Please pass on\r\n\r\nWould you relay this?\r\n"},
}

func (d *demo) sendAll(ctx context.Context) error {
	for i, l := range letters {
		d.printf("\n%d. %s: <%s> to <%s>\n", i+1, l.title, l.from, l.to)
		reply, err := d.send(ctx, l)
		if r, ok := errors.AsType[*smtp.Reply](err); ok {
			d.printf("   ✗ refused: %s\n", printable(r.Line()))
			continue
		}
		if err != nil {
			return err
		}
		d.printf("   ✓ accepted: %s\n", printable(reply.Line()))
	}
	return nil
}

// send sends one letter with the project's own client, over STARTTLS.
func (d *demo) send(ctx context.Context, l letter) (*smtp.Reply, error) {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	var dialer net.Dialer
	nc, err := dialer.DialContext(ctx, "tcp", d.gw.Addr("demo").String())
	if err != nil {
		return nil, err
	}
	c, err := smtp.NewClient(ctx, nc, smtp.ClientOptions{LocalName: l.helo})
	if err != nil {
		return nil, err
	}
	defer c.Close()
	if err := c.StartTLS(ctx, &tls.Config{RootCAs: d.roots, ServerName: demoHost}); err != nil {
		return nil, err
	}
	from, err := smtp.ParseAddress(l.from)
	if err != nil {
		return nil, err
	}
	to, err := smtp.ParseAddress(l.to)
	if err != nil {
		return nil, err
	}
	rcpts, err := c.Envelope(ctx, smtp.Sender{Path: from, UTF8: to.NeedsUTF8(), Body: smtp.BodyEightBit}, []smtp.Recipient{{Path: to}})
	if err = errors.Join(append(rcpts, err)...); err != nil {
		return nil, err
	}
	head := "From: <" + l.from + ">\r\nTo: <" + l.to + ">\r\nDate: " + time.Now().Format(time.RFC1123Z) + "\r\n"
	replies, err := c.Data(ctx, readOnce{head + l.body})
	if err != nil {
		return nil, err
	}
	if !replies[0].Positive() {
		return nil, replies[0]
	}
	return replies[0], c.Quit(ctx)
}

// readOnce is content that is a string.
type readOnce struct{ s string }

// WriteTo implements io.WriterTo.
func (r readOnce) WriteTo(w io.Writer) (int64, error) {
	n, err := io.WriteString(w, r.s)
	return int64(n), err
}

func (d *demo) invite() {
	d.level.Set(slog.LevelInfo)
	addr := d.gw.Addr("demo")
	d.printf(`
The gateway stays up. Send it mail of your own, and watch what is said here:

  swaks --server %[1]s --tls --from you@example.org --to bob@example.com
  printf 'Subject: hi\n\nHello\n' | curl -sS smtp://%[1]s --mail-from you@example.org --mail-rcpt bob@example.com --crlf -T -

Mail that is let through appears in %[2]s
Ctrl-C ends it.
`, addr, d.dir)
}
