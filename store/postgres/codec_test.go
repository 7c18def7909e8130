package postgres

import (
	"encoding/binary"
	"net/netip"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/penstock/penstock/mail/smtp"
	"github.com/penstock/penstock/store"
)

// sealed adds the version and the checksum, so that what is fuzzed are the fields.
func sealed(fields []byte) []byte {
	b := append([]byte{codecVersion}, fields...)
	return binary.BigEndian.AppendUint32(b, uint32(sum(b)))
}

// FuzzDecode: no octets make decoding panic, and what was decoded is decoded again from what
// it is encoded to.
func FuzzDecode(f *testing.F) {
	d, err := smtp.ParseDomain("example.com")
	if err != nil {
		f.Fatal(err)
	}
	m := &store.Message{
		Sender: smtp.Sender{Path: smtp.Path{Local: "a", Domain: d}, Size: 7, EnvID: "x"},
		Origin: store.Origin{Client: smtp.Forwarded{Addr: netip.MustParseAddr("2001:db8::1"), Port: 25}, By: time.Unix(1, 0)},
	}
	reply := &smtp.Reply{Code: 250, Enh: smtp.Enhanced{2, 1, 5}, Text: "taken", Hangup: true}
	for _, b := range [][]byte{
		encodeEnvelope(m), encodeRecipient(smtp.Recipient{Path: m.Sender.Path, Notify: smtp.NotifyNever}), encodeReply(reply),
		encodeAttempt(&store.Attempt{Time: time.Unix(1, 0), Host: "mx", Recipients: []int{1, 2}, Reply: reply}),
	} {
		f.Add(b[1 : len(b)-4])
	}
	f.Add([]byte{})
	f.Add([]byte("\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01"))
	f.Fuzz(func(t *testing.T, fields []byte) {
		b := sealed(fields)
		var a, again store.Message
		if decodeEnvelope(b, &a) == nil {
			if err := decodeEnvelope(encodeEnvelope(&a), &again); err != nil || !reflect.DeepEqual(a, again) {
				t.Errorf("envelope: got %+v, %v, want %+v", again, err, a)
			}
		}
		if r, err := decodeRecipient(b); err == nil {
			if again, err := decodeRecipient(encodeRecipient(r)); err != nil || again != r {
				t.Errorf("recipient: got %+v, %v, want %+v", again, err, r)
			}
		}
		if r, err := decodeReply(b); err == nil {
			if again, err := decodeReply(encodeReply(r)); err != nil || !reflect.DeepEqual(again, r) {
				t.Errorf("reply: got %+v, %v, want %+v", again, err, r)
			}
		}
		if r, err := decodeAttempt(b); err == nil {
			if again, err := decodeAttempt(encodeAttempt(&r)); err != nil || !reflect.DeepEqual(again, r) {
				t.Errorf("attempt: got %+v, %v, want %+v", again, err, r)
			}
		}
	})
}

func TestSealer(t *testing.T) {
	a, err := newSealer([][]byte{key(1)})
	if err != nil {
		t.Fatal(err)
	}
	b := a.seal("name", []byte("secret"))
	if got, err := a.open("name", b); err != nil || string(got) != "secret" {
		t.Errorf("got %q, %v", got, err)
	}
	if strings.Contains(string(b), "secret") || string(b) == string(a.seal("name", []byte("secret"))) {
		t.Error("the same file is encrypted twice alike, or not at all")
	}
	for i := range b {
		changed := append([]byte(nil), b...)
		changed[i] ^= 1
		if got, err := a.open("name", changed); err == nil {
			t.Errorf("octet %d changed: got %q", i, got)
		}
		if got, err := a.open("name", b[:i]); err == nil {
			t.Errorf("cut at %d: got %q", i, got)
		}
	}
	if _, err := newSealer([][]byte{key(1), key(1)}); err == nil {
		t.Error("the same key twice: got no error")
	}
}

func TestRank(t *testing.T) {
	for _, tt := range []struct{ priority, tries, afterPriority, afterTries int }{
		{9, 0, 0, 0},
		{0, 1, 0, 0},
		{1, 63, 0, 0},    // priority comes first
		{0, 1000, 0, 63}, // more are not told apart
		{-9, 5, -9, 4},
		{-100, 5, -9, 5},
	} {
		got, than := rank(tt.afterPriority, tt.afterTries), rank(tt.priority, tt.tries)
		if tt.priority > tt.afterPriority && than >= got || tt.priority == tt.afterPriority && than < got || tt.priority < tt.afterPriority && than != got {
			t.Errorf("%+v: got %d and %d", tt, than, got)
		}
	}
}

// Records of before Origin.Trusted and Attempt.Addr end where these begin.
func TestOlderRecords(t *testing.T) {
	older := func(b []byte, lacks int) []byte {
		return (&writer{b[:len(b)-4-lacks]}).done()
	}
	m := &store.Message{Sender: smtp.Sender{EnvID: "e"}, Origin: store.Origin{Mode: "N"}}
	var got store.Message
	if err := decodeEnvelope(older(encodeEnvelope(m), 2), &got); err != nil || got.Sender.EnvID != "e" || got.Origin.Trusted {
		t.Errorf("an older envelope: got %+v, %v", got, err)
	}
	a, err := decodeAttempt(older(encodeAttempt(&store.Attempt{Host: "h", Recipients: []int{0, 3}}), 3))
	if err != nil || a.Host != "h" || len(a.Recipients) != 2 || a.Addr.IsValid() {
		t.Errorf("an older attempt: got %+v, %v", a, err)
	}
}
