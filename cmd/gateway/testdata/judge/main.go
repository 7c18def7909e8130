// Judge answers for each recipient of a message by the local part, and refuses a body while it
// comes in. It is a filter of the tests.
package main

import (
	"bytes"

	"github.com/penstock/penstock/guest-sdk/filter"
)

func init() {
	f := filter.New("judge")
	f.OnChunk(func(w filter.Reply, m *filter.ChunkEvent) {
		if bytes.Contains(m.Bytes(), []byte("X-WORM")) {
			w.Reject(554, "5.7.0", "a worm at "+m.Header.Get("Subject"))
		}
	})
	f.OnData(func(_ filter.Reply, m *filter.Message) {
		for r := range m.Recipients().Each() {
			if err := judge(r); err != nil {
				panic(err)
			}
		}
	})
	f.Serve()
}

func judge(r filter.Recipient) error {
	switch r.Local() {
	case "no":
		return r.Reject(551, "5.7.1", "not for no")
	case "later":
		return r.Tempfail(0, "", "")
	case "drop":
		return r.Discard()
	case "hold":
		return r.Quarantine("odd")
	}
	return nil
}

func main() {}
