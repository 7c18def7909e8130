;; Shapes of code that does not end, one for each hook. None may run past its CPU budget.
(module
  (type $hook (func (param i32 i32) (result i64)))
  (type $f (func (param i64) (result i64)))
  (import "mg1" "subscribe" (func $subscribe (param i64) (result i32)))
  (memory (export "memory") 1)
  (table funcref (elem $self $fork))
  (func (export "mg1_init") (param i32) (result i64)
    (drop (call $subscribe (i64.const 0x5fe)))
    (i64.const 0x100000001000))

  ;; Calls itself through the table, as the last thing it does: for ever in a machine that
  ;; makes a jump of it, too deep in others.
  (func $self (type $f) (call_indirect (type $f) (i64.add (local.get 0) (i64.const 1)) (i32.const 0)))
  ;; Twice, a hundred deep.
  (func $fork (type $f)
    (if (result i64) (i64.eqz (local.get 0))
      (then (i64.const 1))
      (else (i64.add
        (call_indirect (type $f) (i64.sub (local.get 0) (i64.const 1)) (i32.const 1))
        (call_indirect (type $f) (i64.sub (local.get 0) (i64.const 1)) (i32.const 1))))))

  (func (export "mg1_hook") (type $hook)
    (if (i32.eq (local.get 0) (i32.const 1)) ;; connect: an empty loop
      (then (loop (br 0))))
    (if (i32.eq (local.get 0) (i32.const 2)) ;; secure: by br_table
      (then (loop $l (block $b (br_table $l $l $l (local.get 1))))))
    (if (i32.eq (local.get 0) (i32.const 3)) ;; helo: a loop with parameters and results
      (then (i64.const 1) (i32.const 1)
        (loop $l (param i64 i32) (result i64 i32)
          (br_if $l (i32.const 1)))
        (drop) (drop)))
    (if (i32.eq (local.get 0) (i32.const 4)) ;; auth: from inside of blocks, an if and an else
      (then (loop $l (block (block (if (i32.and (local.get 1) (i32.const 1)) (then (br $l)) (else (br $l))))))))
    (if (i32.eq (local.get 0) (i32.const 5)) ;; mail: two loops that are short for each other
      (then (loop $a (loop $b (br_if $a (i32.eqz (local.get 1))) (br $a)))))
    (if (i32.eq (local.get 0) (i32.const 6)) ;; rcpt: $self
      (then (return (call $self (i64.const 0)))))
    (if (i32.eq (local.get 0) (i32.const 7)) ;; data: $fork
      (then (return (call $fork (i64.const 100)))))
    (if (i32.eq (local.get 0) (i32.const 8)) ;; headers: the end is 2^64 turns away
      (then (loop $l (param) (i64.store (i32.const 8) (i64.add (i64.load (i32.const 8)) (i64.const 2)))
        (br_if $l (i64.ne (i64.load (i32.const 8)) (i64.const 1))))))
    (if (i32.eq (local.get 0) (i32.const 10)) ;; message: behind code that cannot be reached
      (then (loop $l (br $l) (br $l) (loop (br 0)) (unreachable))))
    (i64.const 0)))
