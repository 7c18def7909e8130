// Package storetest is what every driver of package store must pass. A driver's test calls
// [Run] with a function that opens a store nobody has used yet:
//
//	func TestStore(t *testing.T) {
//		storetest.Run(t, func(t testing.TB) *storetest.Env { … })
//	}
//
// What a store can not do, such as to be shared, its Env leaves nil, and what asks for it is
// skipped.
package storetest

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/penstock/penstock/mail/smtp"
	"github.com/penstock/penstock/store"
)

// Env is a store and what surrounds it. Who opens it closes it when the test ends.
type Env struct {
	Store store.Store
	// Advance moves the clock that leases and locks run out by. If it is nil, the suite
	// waits in real time.
	Advance func(d time.Duration)
	// Reopen closes Store and opens what it kept, as after a restart. Store is the new one.
	Reopen func(t testing.TB)
	// Second opens another store on the same database, for drivers that can be shared.
	Second func(t testing.TB) store.Store
	// Slow tells that each operation is a message to elsewhere: the large tests are smaller.
	Slow bool
}

// Run runs the suite.
func Run(t *testing.T, open func(t testing.TB) *Env) {
	for _, tt := range []struct {
		name string
		test func(t *testing.T, e *Env)
	}{
		{"Message", testMessage},
		{"Begin", testBegin},
		{"Content", testContent},
		{"LargeContent", testLargeContent},
		{"ContentOutlivesMessage", testContentOutlives},
		{"CommitLeased", testCommitLeased},
		{"Order", testOrder},
		{"Due", testDue},
		{"ClockSteps", testClockSteps},
		{"Split", testSplit},
		{"Finish", testFinish},
		{"Attempts", testAttempts},
		{"Return", testReturn},
		{"LeaseRunsOut", testLeaseRunsOut},
		{"Extend", testExtend},
		{"Reports", testReports},
		{"ReportsOfALostLease", testLostReports},
		{"Update", testUpdate},
		{"UpdateLeased", testUpdateLeased},
		{"Hold", testHold},
		{"Destinations", testDestinations},
		{"Watch", testWatch},
		{"List", testList},
		{"ListUnderTraffic", testListTraffic},
		{"Count", testCount},
		{"Restore", testRestore},
		{"Move", testMove},
		{"HostileNames", testHostileNames},
		{"Cancelled", testCancelled},
		{"Hammer", testHammer},
		{"Many", testMany},
		{"Reopen", testReopen},
		{"Modules", testModules},
		{"KV", testKV},
		{"KVQuota", testKVQuota},
		{"KVConcurrent", testKVConcurrent},
		{"Files", testFiles},
		{"Locks", testLocks},
		{"Policies", testPolicies},
		{"Cluster", testCluster},
	} {
		t.Run(tt.name, func(t *testing.T) { tt.test(t, open(t)) })
	}
}

// RunShared is the part for drivers whose store several processes may have open: open must give
// Env.Second.
func RunShared(t *testing.T, open func(t testing.TB) *Env) {
	t.Run("TwoStores", func(t *testing.T) { testTwoStores(t, open(t)) })
	t.Run("TwoStoresHammer", func(t *testing.T) { testTwoHammer(t, open(t)) })
}

// now is when the tests begin: a time in the past, so that all is due unless a test says
// otherwise.
var now = time.Date(2026, 2, 3, 4, 5, 6, 7000, time.UTC)

// here is where recipients wait unless a test says otherwise.
const here = store.Destination("backend:here")

// long is a lease that does not run out during a test.
const long = time.Hour

func path(t testing.TB, s string) smtp.Path {
	t.Helper()
	p, err := smtp.ParsePath(s)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// mail is a message for recipients that are due at here.
func mail(t testing.TB, to ...string) *store.Message {
	t.Helper()
	m := &store.Message{Arrived: now, Sender: smtp.Sender{Path: path(t, "<sender@example.org>")}}
	for _, a := range to {
		m.Recipients = append(m.Recipients, store.Recipient{
			Recipient:   smtp.Recipient{Path: path(t, "<"+a+">")},
			Destination: here,
			Due:         now,
		})
	}
	return m
}

// full is a message with all that one can have.
func full(t testing.TB) *store.Message {
	return &store.Message{
		Arrived: now.Add(-time.Minute),
		Sender: smtp.Sender{
			Path: path(t, "<sender@example.org>"), Size: 17, Body: smtp.BodyEightBit, UTF8: true,
			RequireTLS: true, Return: smtp.ReturnHeaders, EnvID: "env+id", Auth: "<>",
		},
		Expires:  now.Add(5 * 24 * time.Hour),
		Priority: -3,
		Origin: store.Origin{
			Listener: "mx", Session: "0123456789abcdef", Reason: "a filter said so", By: now.Add(time.Hour), Mode: "NT",
			ReportOf: new(store.IDs).Next(now),
			Client: smtp.Forwarded{
				Name: "client.example.org", Addr: netip.MustParseAddr("2001:db8::1"), Port: 40123, Proto: "ESMTP",
				Helo: "[192.0.2.1]", Ident: "ident", Source: "REMOTE", Login: "user",
				DestAddr: netip.MustParseAddr("192.0.2.25"), DestPort: 25,
			},
			Trusted: true, TLSOptional: true,
		},
		Recipients: []store.Recipient{
			{
				Recipient: smtp.Recipient{
					Path: path(t, "<\"a b\"@example.com>"), Notify: smtp.NotifyFailure | smtp.NotifyDelay,
					Original: smtp.OriginalRecipient{Type: "rfc822", Address: "A@example.com"},
				},
				Destination: here, Due: now,
			},
			{Recipient: smtp.Recipient{Path: path(t, "<jörg@xn--exmple-cua.com>")}, Destination: "mx:[IPv6:2001:db8::25]", State: store.Held},
			{Recipient: smtp.Recipient{Path: path(t, "<postmaster>")}, Destination: "backend:elsewhere", Due: now.Add(time.Hour)},
		},
	}
}

func reply(code int, text string) *smtp.Reply {
	return smtp.Refuse(code, smtp.Enhanced{code / 100, 1, 2}, text)
}

// delivered, failed and later are outcomes.
func delivered() store.Outcome {
	return store.Outcome{State: store.Delivered, Tried: true, Reply: reply(250, "taken")}
}

func failed() store.Outcome {
	return store.Outcome{State: store.Failed, Tried: true, Reply: reply(550, "no such user")}
}

func later(due time.Time) store.Outcome {
	return store.Outcome{State: store.Waiting, Due: due, Tried: true, Reply: reply(451, "later")}
}

// outcomes is the same for all of a lease.
func outcomes(l *store.Lease, o store.Outcome) []store.Outcome {
	all := make([]store.Outcome, len(l.Recipients))
	for i := range all {
		all[i] = o
	}
	return all
}

// check ends the test if err is one.
func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// is ends the test if err is not the one that is wanted.
func is(t testing.TB, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Fatalf("error: got %v, want %v", err, want)
	}
}

// commit puts a message into the queue.
func commit(t testing.TB, q store.Queue, m *store.Message, content string) store.ID {
	t.Helper()
	in, err := q.Begin(context.Background(), m)
	check(t, err)
	if _, err := in.Write([]byte(content)); err != nil {
		t.Fatal(err)
	}
	id, err := in.Commit(context.Background())
	check(t, err)
	return id
}

// lease takes all leases that are due at a time.
func lease(t testing.TB, q store.Queue, d store.Destination, at time.Time) []*store.Lease {
	t.Helper()
	list, err := q.Lease(context.Background(), d, at, 1000, long)
	check(t, err)
	return list
}

// one takes the one lease that there must be.
func one(t testing.TB, q store.Queue, d store.Destination, at time.Time) *store.Lease {
	t.Helper()
	list := lease(t, q, d, at)
	if len(list) != 1 {
		t.Fatalf("leases at %q: got %d, want 1", d, len(list))
	}
	return list[0]
}

// none asks that nothing is due.
func none(t testing.TB, q store.Queue, d store.Destination, at time.Time) {
	t.Helper()
	if list := lease(t, q, d, at); len(list) != 0 {
		t.Fatalf("leases at %q: got %d, want none", d, len(list))
	}
}

// get returns a message that must be there.
func get(t testing.TB, q store.Queue, id store.ID) *store.Message {
	t.Helper()
	m, err := q.Message(context.Background(), id)
	check(t, err)
	return m
}

// gone asks that a message is not there.
func gone(t testing.TB, q store.Queue, id store.ID) {
	t.Helper()
	_, err := q.Message(context.Background(), id)
	is(t, err, store.ErrNotFound)
	_, err = q.Content(context.Background(), id)
	is(t, err, store.ErrNotFound)
}

// read returns a message's content.
func read(t testing.TB, q store.Queue, id store.ID) string {
	t.Helper()
	c, err := q.Content(context.Background(), id)
	check(t, err)
	defer c.Close()
	var b strings.Builder
	n, err := c.WriteTo(&b)
	check(t, err)
	if n != int64(b.Len()) || n != c.Size() {
		t.Errorf("content: wrote %d octets, counted %d, size is %d", b.Len(), n, c.Size())
	}
	return b.String()
}

// counts returns Count.
func counts(t testing.TB, q store.Queue) store.Counts {
	t.Helper()
	c, err := q.Count(context.Background())
	check(t, err)
	return c
}

// sameMessage compares messages field by field. Empty and nil are the same.
func sameMessage(t testing.TB, got, want *store.Message) {
	t.Helper()
	g, w := *got, *want
	if len(g.Attempts)+len(w.Attempts) == 0 {
		g.Attempts, w.Attempts = nil, nil
	}
	if reflect.DeepEqual(g, w) {
		return
	}
	gv, wv := reflect.ValueOf(g), reflect.ValueOf(w)
	for i := range gv.NumField() {
		if !reflect.DeepEqual(gv.Field(i).Interface(), wv.Field(i).Interface()) {
			t.Errorf("%s:\n got %+v\nwant %+v", gv.Type().Field(i).Name, gv.Field(i).Interface(), wv.Field(i).Interface())
		}
	}
}

// eventually waits until ok returns true, which it must within the time of a slow machine.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	deadline := time.NewTimer(20 * time.Second)
	defer deadline.Stop()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-deadline.C:
			t.Fatalf("it did not happen in time: %s", what)
		case <-tick.C:
		}
	}
}

// pass lets time pass for leases: by Advance, or really.
func (e *Env) pass(t testing.TB, d time.Duration) {
	t.Helper()
	if e.Advance != nil {
		e.Advance(d)
		return
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	<-timer.C
}

// short is a lease that runs out soon, and how long to wait until it has.
func (e *Env) short() (lasts, over time.Duration) {
	if e.Advance != nil {
		return time.Minute, 2 * time.Minute
	}
	return 300 * time.Millisecond, 700 * time.Millisecond
}

// scale is a number of messages for a test.
func (e *Env) scale(n int) int {
	if e.Slow || raceEnabled {
		return n / 20
	}
	return n
}

// user is an address of many.
func user(i int) string { return fmt.Sprintf("user%d@example.com", i) }
