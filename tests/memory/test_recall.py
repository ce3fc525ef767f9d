import threading
import pytest
from django.db import connection, connections
from memory import recall
from memory.models import *
@pytest.mark.django_db(transaction=True)
def test_two():
    print(connection.settings_dict["NAME"])
    b=threading.Barrier(4); errs=[]
    def go(i):
        b.wait()
        try: 
            for j in range(10): recall._store("user:a","s",f"q{i}{j}","a",False)
        except Exception as e: errs.append(e)
        finally: connections.close_all()
    ts=[threading.Thread(target=go,args=(i,)) for i in range(4)]
    [t.start() for t in ts];[t.join() for t in ts]
    assert not errs
    assert Turn.objects.count()==80
