package postgres

// record.go turns messages into rows. It is done by whoever commits, so that the committer
// only hands columns on.

import (
	"errors"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/penstock/penstock/store"
)

// uuid is the 16 octets of an ID.
type uuid = [16]byte

// maxAttempts is how many attempts a message keeps.
const maxAttempts = 50

// stored is a time as the database has it.
func stored(t time.Time) time.Time { return t.UTC().Truncate(time.Microsecond) }

// rank orders recipients at a destination: by priority, larger first, then by tries. An index
// holds it, and there are few of them. The limits are the column's.
func rank(priority, tries int) int16 {
	const ranks, most = 64, 63
	p := 9 - max(-9, min(priority, 9))
	return int16(p*ranks + max(0, min(tries, most)))
}

// record is a message as rows.
type record struct {
	id                   uuid
	arrived, expires     time.Time
	size                 int64
	priority             int16
	sender, senderDomain []byte
	envelope             []byte
	blob                 *uuid
	body                 []byte
	recipients           []recipientRow
	attempts             [][]byte
}

type recipientRow struct {
	destination, domain []byte
	state               int16
	rank                int16
	due                 time.Time
	tries               int32
	told                bool
	envelope, last      []byte
	token               int64 // 0 is none
	lasts               int64 // microseconds of the lease
}

// errNoRecipients is for a message that nobody would ever see again.
var errNoRecipients = errors.New("postgres: a message of which no recipient is waiting or held")

// newRecord makes the rows of a message, whose ID and Size are set, without content.
func newRecord(m *store.Message) (*record, error) {
	id, ok := m.ID.Bytes()
	if !ok || len(m.Recipients) == 0 {
		return nil, errNoRecipients
	}
	r := &record{
		id: id, arrived: m.Arrived, expires: m.Expires, size: m.Size, priority: int16(max(-9, min(m.Priority, 9))),
		sender: []byte(m.Sender.Path.String()), senderDomain: []byte(m.Sender.Path.Domain.String()),
		envelope: encodeEnvelope(m), body: []byte{},
	}
	for i := range m.Recipients {
		p := &m.Recipients[i]
		r.recipients = append(r.recipients, recipientRow{
			destination: []byte(p.Destination), domain: []byte(p.Path.Domain.String()),
			state: int16(p.State), rank: rank(m.Priority, p.Tries), due: p.Due, tries: int32(p.Tries),
			told: p.DelayTold, envelope: encodeRecipient(p.Recipient), last: encodeReply(p.Last),
		})
	}
	for _, a := range m.Attempts[max(0, len(m.Attempts)-maxAttempts):] {
		r.attempts = append(r.attempts, encodeAttempt(&a))
	}
	return r, nil
}

// lease marks the recipients that wait at d as leased, and returns their indexes.
func (r *record) lease(d store.Destination, token int64, lasts time.Duration) []int {
	var leased []int
	for i := range r.recipients {
		p := &r.recipients[i]
		if p.state == int16(store.Waiting) && string(p.destination) == string(d) {
			p.token, p.lasts = token, lasts.Microseconds()
			leased = append(leased, i)
		}
	}
	return leased
}

// waits tells whether somebody could lease a recipient now.
func (r *record) waits() bool {
	return slices.ContainsFunc(r.recipients, func(p recipientRow) bool {
		return p.state == int16(store.Waiting) && p.token == 0
	})
}

// newToken names a holder of leases.
func newToken() int64 { return 1 + rand.Int64N(1<<62) }

// newRecordOfReport is newRecord for a report, which gets its ID here.
func (s *Store) newRecordOfReport(rep *store.Report) (*record, error) {
	m := *rep.Message
	m.ID, m.Size, m.Attempts = s.ids.Next(time.Now()), int64(len(rep.Content)), nil
	r, err := newRecord(&m)
	if err != nil {
		return nil, err
	}
	if rep.Content != nil {
		r.body = rep.Content
	}
	return r, nil
}

func (s *Store) newRecords(reports []*store.Report) ([]*record, error) {
	var list []*record
	for _, rep := range reports {
		r, err := s.newRecordOfReport(rep)
		if err != nil {
			return nil, err
		}
		list = append(list, r)
	}
	return list, nil
}
