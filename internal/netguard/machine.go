package netguard

import (
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"
)

// machine.go knows the addresses of this machine. They change while we run, as when an
// address moves from one node of a cluster to another, so they are asked for now and then.

// machineEvery is how long a list of addresses is good for.
const machineEvery = 10 * time.Second

// Machine knows the addresses of this machine. The zero Machine is ready for use. It is safe
// for concurrent use, and must not be copied.
type Machine struct {
	// List returns the addresses. Nil asks the system. It is called by one goroutine at a
	// time.
	List func() ([]netip.Addr, error)
	// Every is how long a list is good for. Default 10 s.
	Every time.Duration

	known atomic.Pointer[list]
	mu    sync.Mutex // held by the one that asks
}

// list is what was known at a time. It is not changed.
type list struct {
	at    time.Time
	addrs map[netip.Addr]bool
}

// Has tells whether the address is one of this machine's. If the system does not tell, what
// it told before holds.
func (m *Machine) Has(a netip.Addr) bool { return m.get().addrs[plain(a)] }

func (m *Machine) get() *list {
	every := m.Every
	if every <= 0 {
		every = machineEvery
	}
	l := m.known.Load()
	if l != nil && time.Since(l.at) < every {
		return l
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if l := m.known.Load(); l != nil && time.Since(l.at) < every {
		return l
	}
	m.known.Store(m.ask(l))
	return m.known.Load()
}

func (m *Machine) ask(before *list) *list {
	ask := m.List
	if ask == nil {
		ask = interfaceAddrs
	}
	now := &list{at: time.Now(), addrs: make(map[netip.Addr]bool)}
	addrs, err := ask()
	if err != nil && before != nil {
		now.addrs = before.addrs
	}
	for _, a := range addrs {
		now.addrs[plain(a)] = true
	}
	return now
}

// interfaceAddrs asks the system.
func interfaceAddrs() ([]netip.Addr, error) {
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		return nil, err
	}
	var list []netip.Addr
	for _, a := range addrs {
		if n, ok := a.(*net.IPNet); ok {
			if addr, ok := netip.AddrFromSlice(n.IP); ok {
				list = append(list, addr)
			}
		}
	}
	return list, nil
}
