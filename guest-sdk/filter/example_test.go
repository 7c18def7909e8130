package filter_test

import (
	"strings"

	"github.com/penstock/penstock/guest-sdk/abi"
	"github.com/penstock/penstock/guest-sdk/filter"
)

// Lists of senders in the DNS are asked at once, and the answers taken as they come.
func ExampleEvent_StartLookUp() {
	f := filter.New("lists")
	f.OnMailFrom(func(w filter.Reply, m *filter.MailEvent) {
		domain := m.From().Domain()
		if domain == "" {
			return
		}
		var asked []filter.LookUpStarted
		for _, list := range []string{"dbl.example.net", "uribl.example.org"} {
			asked = append(asked, m.StartLookUp(abi.DNSA, domain+"."+list))
		}
		for _, a := range asked {
			switch _, err := a.Wait(2000); {
			case err == nil:
				w.Reject(550, "5.7.1", "sender is on a list")
				return
			case !filter.NotFound(err): // not granted, or nobody knows: that is no reason to refuse
				m.Log(filter.LevelInfo, "no answer", "err", err.Error())
			}
		}
	})
}

// A recipient may be refused while the others get the message, by what is attached to it.
func ExampleMessage_Parts() {
	f := filter.New("no-programs")
	f.OnData(func(w filter.Reply, m *filter.Message) {
		for p := range m.Parts() {
			if !strings.HasSuffix(strings.ToLower(p.FileName()), ".exe") {
				continue
			}
			for to := range m.Recipients().Each() {
				if to.Local() == "accounting" {
					if err := to.Reject(550, "5.7.1", "no programs for accounting"); err != nil {
						w.Tempfail(451, "4.3.0", "try again later")
					}
				}
			}
		}
	})
}
