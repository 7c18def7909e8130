// Package lab is a small Internet for tests, made of real parts: nsd serves a tree of
// zones from a signed root down, unbound validates what it says, mail hosts listen on port
// 25 and web servers with MTA-STS policies on port 443, each on an address of its own in
// 127.0.0.0/8.
//
//	root  .  signed, its key is unbound's trust anchor
//	 |
//	test  signed                                    nsd      127.53.0.1:53
//	 |-- secure.test   Signed: has a DS             unbound  127.0.0.1:53
//	 |-- plain.test    Insecure: has none           hosts    127.0.1.1:25 and on
//	 |-- bogus.test    Bogus: its DS is another's   web      127.0.3.1:443
//	 '-- lame.test     Lame: its server refuses
//
// The test makes the zones and signs them, so a wrong signature or a missing record is a
// line of Go. It runs in a network namespace of its own, where those ports are free and
// nothing else can be reached:
//
//	func TestDelivery(t *testing.T) {
//		if !lab.Enter(t) {
//			return // the test has run in the namespace, as a process of its own
//		}
//		w := lab.New(t)
//		w.Zone("test", lab.Signed)
//		z := w.Zone("secure.test", lab.Signed)
//		h := w.Host("mx.secure.test", lab.HostOptions{Certificate: ...})
//		z.Add("@ MX 10 mx")
//		z.TLSA("mx", "3 1 1", leaf)
//		w.Start()
//		... w.DNS, w.Dial, h.Wait(t, 1) ...
//	}
//
// Where namespaces are not permitted, the same hosts listen on high ports of the same
// addresses, and World.Dial leads there: who takes a dialer sees no difference. Real mail
// software cannot be given one, so tests that start some ask World.Real first.
//
// A world starts once for a test and serves all its subtests, which may run in parallel.
package lab
