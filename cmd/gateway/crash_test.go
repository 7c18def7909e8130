package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/penstock/penstock/mail/message"
	"github.com/penstock/penstock/mail/smtp"
)

// crash_test.go: the program is killed under load, again and again on one folder, and what was
// answered with 250 arrives. PENSTOCK_TORTURE says how often; 20 times if it does not.
//
// RFC 5321, Section 6.1: who answered 250 must not lose the message for frivolous reasons,
// such as a crash. A message may come twice if the crash fell between the backend's 250 and
// our record of it (Section 4.5.4.1 asks to make that unlikely, RFC 1047 says why it cannot
// be ruled out), and in no other case.

// torture asks for more kills.
const torture = "PENSTOCK_TORTURE"

const crashConfig = `
hostname: mx.example.org
listeners:
  - {name: mx, address: "127.0.0.1:0", tls: off, reverse_dns: {enabled: false}}
routes:
  - {domains: [example.org], backend: store}
backends:
  store: {addresses: ["smtp://BACKEND"], mode: queue, recipients: accept}
delivery: {schedule: {first: 100ms, factor: 1, max: 1s, expire: 1h}}
store: {driver: embedded, path: "FOLDER"}
certificates: {dir: $DIR/certificates}
log: {format: json}
`

// moody is a backend that notes what it took, at times refuses for now, and at times cuts the
// connection off when it has heard all of a message and taken nothing.
type moody struct {
	addr string

	mu    sync.Mutex // guards what follows
	life  int        // of the gateway: how many came before
	acked map[string]string
	came  map[string][]int // the lives in which a message came, by its Message-ID
	news  chan struct{}    // closed and renewed when something came or was acknowledged
	moods [3]int           // how often it took, refused, and cut off
}

// startMoody starts one for the time of the test.
func startMoody(t *testing.T) *moody {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	b := &moody{addr: l.Addr().String(), acked: map[string]string{}, came: map[string][]int{}, news: make(chan struct{})}
	srv, err := smtp.NewServer(smtp.HandlerFunc(b.session), smtp.ServerOptions{Hostname: "back.example.org"})
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- srv.Serve(l) }()
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		_ = srv.Shutdown(ctx) // cut off or not, Serve returns
		<-served
	})
	return b
}

// moodySession belongs to the life in which its connection began: what a killed gateway has
// sent may be read when the next one runs.
type moodySession struct {
	smtp.Accept
	b    *moody
	conn *smtp.Conn
	life int
}

func (b *moody) session(_ context.Context, c *smtp.Conn) (smtp.Session, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return &moodySession{b: b, conn: c, life: b.life}, nil
}

// Message implements smtp.Session.
func (s *moodySession) Message(_ context.Context, body *smtp.DataReader) ([]*smtp.Reply, error) {
	raw, err := io.ReadAll(body)
	if err != nil {
		return nil, err
	}
	h, _ := message.Parse(raw)
	b := s.b
	b.mu.Lock()
	defer b.mu.Unlock()
	switch n := rand.IntN(20); n {
	case 0, 1:
		b.moods[1]++
		return nil, smtp.Refuse(451, smtp.Enhanced{4, 3, 0}, "not in the mood")
	case 2:
		b.moods[2]++
		_ = s.conn.NetConn().Close()
		return nil, io.ErrUnexpectedEOF
	}
	b.moods[0]++
	id := h.Get("Message-ID")
	b.came[id] = append(b.came[id], s.life)
	b.tell()
	return nil, nil
}

// tell wakes who waits. b.mu is held.
func (b *moody) tell() {
	close(b.news)
	b.news = make(chan struct{})
}

// ack notes that a client heard 250.
func (b *moody) ack(id, name string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.acked[id] = name
	b.tell()
}

// await waits until ok, which is called with b.mu held, says yes.
func (b *moody) await(t *testing.T, what string, g *gatewayProcess, ok func() bool) {
	t.Helper()
	late := time.After(2 * patience)
	for {
		b.mu.Lock()
		done, news := ok(), b.news
		b.mu.Unlock()
		if done {
			return
		}
		select {
		case <-news:
		case <-g.done:
			t.Fatalf("the gateway ended (%v) before: %s\n%s", g.err, what, g.tail())
		case <-late:
			t.Fatalf("in vain: %s: %s\n%s", what, strings.Join(b.missing(), " "), g.tail())
		}
	}
}

// tail is the end of the log.
func (g *gatewayProcess) tail() string {
	log := g.log()
	return log[max(0, len(log)-10_000):]
}

// missing are the messages that were acknowledged and have not come.
func (b *moody) missing() (ids []string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for id, name := range b.acked {
		if len(b.came[id]) == 0 {
			ids = append(ids, id+" as "+name)
		}
	}
	return ids
}

// crashClients is how many send at a time.
const crashClients = 8

// load sends mail until the gateway takes no more. wait returns when all clients have given up.
func (b *moody) load(t *testing.T, g *gatewayProcess) (wait func()) {
	b.mu.Lock()
	life := b.life
	b.mu.Unlock()
	var clients sync.WaitGroup
	for n := range crashClients {
		clients.Go(func() {
			for session := 0; b.send(t.Context(), g.addr["mx"], fmt.Sprintf("%d.%d.%d", life, n, session)) == nil; session++ {
			}
		})
	}
	return clients.Wait
}

// send sends 30 messages on one connection, one in 20 of them so large that it gets a file.
func (b *moody) send(ctx context.Context, addr, name string) error {
	var d net.Dialer
	nc, err := d.DialContext(ctx, "tcp", addr)
	if err != nil {
		return err
	}
	c, err := smtp.NewClient(ctx, nc, smtp.ClientOptions{LocalName: "client.example.net"})
	if err != nil {
		return err
	}
	defer c.Close()
	from, _ := smtp.ParseAddress("alice@example.net")
	to, _ := smtp.ParseAddress("bob@example.org")
	for i := range 30 {
		id := fmt.Sprintf("<%s.%d@client.example.net>", name, i)
		size := 2 << 10
		if rand.IntN(20) == 0 {
			size = 300 << 10
		}
		raw := fmt.Appendf(nil, "Message-ID: %s\r\nSubject: a crash\r\n\r\n%s", id, strings.Repeat("all work and no play\r\n", size/22))
		rcpts, err := c.Envelope(ctx, smtp.Sender{Path: from}, []smtp.Recipient{{Path: to}})
		if err != nil || rcpts[0] != nil {
			return fmt.Errorf("envelope: %w, %v", err, rcpts)
		}
		replies, err := c.Data(ctx, bytes.NewReader(raw))
		if err != nil {
			return err
		}
		if replies[0].Code != 250 {
			return replies[0]
		}
		b.ack(id, replies[0].Text[strings.LastIndexByte(replies[0].Text, ' ')+1:])
	}
	return c.Quit(ctx)
}

// begin starts the next life of the gateway.
func (b *moody) begin(t *testing.T, folder string) *gatewayProcess {
	t.Helper()
	b.mu.Lock()
	b.life++
	b.mu.Unlock()
	yaml := strings.NewReplacer("BACKEND", b.addr, "FOLDER", folder).Replace(crashConfig)
	return startGatewayAs(t, yaml, func(cmd *exec.Cmd) {
		// To the gateway it would be a key of its configuration.
		cmd.Env = slices.DeleteFunc(os.Environ(), func(s string) bool { return strings.HasPrefix(s, torture+"=") })
	})
}

// heard is how many messages have been acknowledged.
func (b *moody) heard() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.acked)
}

// life is what is known of one that ended with a kill.
type life struct {
	killed   time.Time
	recorded map[string]time.Time // when the end of a message was, by its name
}

// recorded are the messages whose delivery the gateway says that it recorded.
func (g *gatewayProcess) recorded() map[string]time.Time {
	g.mu.Lock()
	defer g.mu.Unlock()
	names := map[string]time.Time{}
	for _, l := range g.lines {
		if n, _ := l["delivered"].(float64); l["msg"] == "delivery" && n > 0 {
			names[l["mail"].(string)], _ = time.Parse(time.RFC3339Nano, l["time"].(string))
		}
	}
	return names
}

// drain waits until all has come, ends the gateway, and has the store checked.
func (b *moody) drain(t *testing.T, folder string) {
	t.Helper()
	g := b.begin(t, folder)
	b.await(t, "all messages", g, func() bool {
		for id := range b.acked {
			if len(b.came[id]) == 0 {
				return false
			}
		}
		return true
	})
	g.stop()
	out, errs, code := gatewayRun(t, g.dir, nil, "store", "check")
	if code != 0 || !strings.Contains(out, "0 broken") {
		t.Errorf("store check: %d\n%s%s", code, out, errs)
	}
}

// TestKilled kills the gateway at moments of chance.
func TestKilled(t *testing.T) {
	kills := 20
	if s := os.Getenv(torture); s != "" {
		n, err := strconv.Atoi(s)
		if err != nil {
			t.Fatalf("%s: %v", torture, err)
		}
		kills = n
	}
	b, folder := startMoody(t), filepath.Join(t.TempDir(), "store")
	lives := []life{{}} // the first is 1
	for range kills {
		g := b.begin(t, folder)
		wait := b.load(t, g)
		enough := b.heard() + 1 + rand.IntN(300)
		b.await(t, "load", g, func() bool { return len(b.acked) >= enough })
		<-time.After(rand.N(20 * time.Millisecond)) // not always behind a 250
		killed := time.Now()
		g.signal(syscall.SIGKILL)
		<-g.done
		wait()
		lives = append(lives, life{killed, g.recorded()})
		if t.Failed() {
			return
		}
	}
	began := time.Now()
	b.drain(t, folder)
	t.Logf("the rest came within %v", time.Since(began))
	b.report(t, lives)
}

// recordWindow is how long a delivery that the log tells of may be missing from the store: it
// shares another message's sync, for which it waits 50 ms at most, and the sync takes its time.
const recordWindow = time.Second

// report counts what came twice and checks that it may: each time the gateway was killed in
// between, before what the backend said was safe in the store.
func (b *moody) report(t *testing.T, lives []life) {
	t.Helper()
	b.mu.Lock()
	defer b.mu.Unlock()
	twice, longest := 0, time.Duration(0)
	for id, in := range b.came {
		name := b.acked[id] // empty if the client was cut off before it heard
		for i, again := range in[1:] {
			twice++
			first := in[i]
			if first == again || first >= len(lives) {
				t.Errorf("%s (%s) came twice although nobody killed the gateway in between", id, name)
				continue
			}
			if at, ok := lives[first].recorded[name]; ok {
				longest = max(longest, lives[first].killed.Sub(at))
			}
		}
	}
	kills := len(lives) - 1
	t.Logf("%d kills: %d messages acknowledged, all came, %d of them twice, those that were recorded %v before the kill at most; the backend took %d, refused %d for now, and cut %d off",
		kills, len(b.acked), twice, longest, b.moods[0], b.moods[1], b.moods[2])
	if longest > recordWindow {
		t.Errorf("a message came again that was recorded %v before the kill", longest)
	}
	if b.moods[1] == 0 || b.moods[2] == 0 || len(b.acked) < kills {
		t.Error("this tests nothing")
	}
}

// TestTerminated ends the gateway under load as an operator does: nothing is lost, and nothing
// comes twice.
func TestTerminated(t *testing.T) {
	b, folder := startMoody(t), filepath.Join(t.TempDir(), "store")
	for range 3 {
		g := b.begin(t, folder)
		wait := b.load(t, g)
		enough := b.heard() + 200 + rand.IntN(200)
		b.await(t, "load", g, func() bool { return len(b.acked) >= enough })
		g.stop() // checks the exit code
		wait()
	}
	b.drain(t, folder)
	b.mu.Lock()
	defer b.mu.Unlock()
	for id, lives := range b.came {
		if len(lives) > 1 {
			t.Errorf("%s came %d times", id, len(lives))
		}
	}
	t.Logf("%d messages acknowledged; the backend took %d, refused %d for now, and cut %d off", len(b.acked), b.moods[0], b.moods[1], b.moods[2])
}
